"""What happens beside an experiment's answers: measures, kept texts, and the shadows' answers that nobody waits for."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from ftray.endpoint import KeepAnswers
from ftray.serve.api.answers import Finished, Question, Running, together
from ftray.serve.api.background import Background
from ftray.serve.api.catalogue import fingerprint
from ftray.serve.api.metrics import Meters, Who
from ftray.serve.api.watch import Watch
from ftray.serve.asking import DeadlinePassed, Engine, EngineFull
from ftray.serve.experiment.spec import Experiment
from ftray.serve.outcomes.async_outcomes import AsyncOutcomes


class Tracker:
    """Notes what came of an experiment's answers."""

    def __init__(
        self,
        engine: Engine,
        outcomes: AsyncOutcomes,
        meters: Meters,
        watch: Watch,
        *,
        keep: KeepAnswers | None,
        shadows: int,
    ) -> None:
        self._engine, self._outcomes, self._meters, self._watch = engine, outcomes, meters, watch
        self._keep, self._most_shadows, self._shadows = keep, shadows, 0
        self.background = Background()

    def begin(self, running: Running) -> None:
        """Let the shadow arms answer the same, each once."""
        target = running.target
        if target.experiment is None or not target.is_counted:
            return
        for arm in target.experiment.spec.shadow:
            who = Who(target.experiment.spec.name, arm.name, fingerprint(target.experiment.digests[arm.name]))
            if self._shadows >= self._most_shadows:
                self._meters.shadow(who, "shed")
                continue
            self._shadows += 1
            self.background.start(self._shadow(running.question, target.experiment, arm.name, who))

    async def _shadow(self, question: Question, experiment: Experiment, arm: str, who: Who) -> None:
        ask = replace(question.asks_of(experiment.digests[arm])[0], is_shadow=True, is_streamed=False)
        begun, how = time.perf_counter(), "failed"
        text, prompt_tokens, completion_tokens, end = "", 0, 0, "length"
        try:
            pieces = together(self._engine, [ask])
            try:
                async for _, piece in pieces:
                    text += piece.text
                    end = piece.finish_reason or end
                    prompt_tokens = piece.prompt_tokens or prompt_tokens
                    completion_tokens = piece.completion_tokens or completion_tokens
            finally:
                await pieces.aclose()
            how = "answered"
        except (EngineFull, DeadlinePassed):
            how = "shed"
            return
        except asyncio.CancelledError:
            how = ""
            raise
        finally:
            self._shadows -= 1
            if how:
                self._meters.shadow(who, how)
        self._meters.answered(
            who,
            time.perf_counter() - begun,
            ends=[end],
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )
        await self._kept(question, arm, text)

    def end(self, running: Running) -> None:
        """Note what was measured of an answer that is whole."""
        if running.target.is_counted and running.finished is not None:
            self.background.start(self._note(running, running.finished))

    async def _note(self, running: Running, done: Finished) -> None:
        values = {"latency_seconds": done.seconds, "completion_tokens": float(done.completion_tokens)}
        await self._outcomes.measure(running.question.response_id, values)
        self._watch.poke()
        if running.target.arm is not None:
            await self._kept(running.question, running.target.arm, "\n\n".join(done.texts))

    async def _kept(self, question: Question, arm: str, answer: str) -> None:
        if self._keep is not None:
            until = time.time() + self._keep.hours * 3600
            await self._outcomes.keep(question.response_id, arm=arm, prompt=question.text, answer=answer, until=until)
