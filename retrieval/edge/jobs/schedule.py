"""The scheduler: starts an audit at regular times. `queue.py` says which, `worker.py` runs the process that does it."""

from retrieval.edge import telemetry
from retrieval.edge.jobs.queue import make_app
from retrieval.edge.settings import Settings
from retrieval.errors import InvalidSettings


def run_beat(settings: Settings) -> None:
    """Run the scheduler of audits in this process until a signal stops it.

    Run exactly one scheduler, with any number of workers. Raises InvalidSettings if no audit is scheduled.
    """
    if not (settings.audit_every_h and settings.audit_catalog and settings.audit_manifest):
        raise InvalidSettings(
            "nothing is scheduled: set RETRIEVAL_AUDIT_EVERY_H, RETRIEVAL_AUDIT_CATALOG and RETRIEVAL_AUDIT_MANIFEST"
        )
    telemetry.setup(settings)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    app = make_app(settings)
    app.Beat(schedule=str(settings.state_dir / "beat-schedule"), loglevel=settings.log_level).run()
