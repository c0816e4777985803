"""placeholder"""
def render_run(run): pass
