"""The targets of a study as its search had them, whatever became of their files since."""

from __future__ import annotations

import tomllib
from pathlib import Path

from hw_models import Target, TargetError, load_target
from hw_models.target_file import parse_target
from nas.errors import UsageError
from nas.progress import Narrator
from nas.study import Study


def kept_targets(study: Study) -> dict[str, Target]:
    """Target name -> target, in the study's order.

    Raises UsageError when an earlier version made the study, which kept no copy or one that is read no more.
    """
    try:
        return {
            Path(named).stem: parse_target(tomllib.loads(study.targets[Path(named).stem]), Path(named).stem)
            for named in study.spec.search.targets
        }
    except (KeyError, TargetError) as error:
        raise UsageError(
            f"study {study.name} was made by an earlier version of this program: use that version, or search again"
        ) from error


def say_edited(study: Study, narrator: Narrator) -> None:
    """Warn of every target that is described otherwise now than when the study was made, or no more."""
    for named in study.spec.search.targets if study.targets else ():
        kept = kept_targets(study)[Path(named).stem]
        try:
            same, since = load_target(named).content() == kept.content(), "was edited since: search again for others"
        except TargetError:
            same, since = False, "can be read no more, which bars new searches alone"
        if not same:
            narrator.warn(f"figures of study {study.name} are of {kept.name} as it was: {named} {since}")
