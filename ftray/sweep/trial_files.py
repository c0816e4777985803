"""What trainers have written of a campaign's trials, brought to the machine of the command, or from it to the store."""

from __future__ import annotations

from ftray.campaign import SweepDirectory, TrialDirectory
from ftray.storage.mirror import is_record, of_trial
from ftray.storage.place import Place


def fetch_trials(place: Place, directory: SweepDirectory) -> None:
    """Fetch the records of all trials but those that a trainer on this machine still writes."""
    if place.url is None:
        return
    start = f"{place.name(directory.trials)}/"
    names = place.objects().find(place.name(directory.trials))
    for trial_id in sorted({name.removeprefix(start).split("/")[0] for name in names}):
        fetch_trial(place, directory.trial(trial_id))


def publish_trials(place: Place, directory: SweepDirectory) -> None:
    """Publish what trials on this machine have left that were stopped before they could."""
    for folder in sorted(directory.trials.iterdir()):
        shelf = place.mirror(folder).shelf(of_trial)
        if shelf is not None:
            shelf.push()


def fetch_trial(place: Place, trial: TrialDirectory) -> None:
    """Fetch a trial's records, unless a trainer on this machine still writes them."""
    place.mirror(trial.root).fetch(lambda name: of_trial(name) and is_record(name), as_reader=True)


def fetch_adapter(place: Place, trial: TrialDirectory) -> None:
    """Fetch the adapter that a campaign has kept of a trial."""
    place.mirror(trial.root).fetch(lambda name: name.startswith("adapter/"))
