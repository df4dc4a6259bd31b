#!/usr/bin/env python
"""The measurements behind what README and docs claim.

    make proof                                  (or: python -m recipes.experiments.run)
    python -m recipes.experiments.run sppo cycle          some parts alone

    sppo             the tearoom: three seeds that must improve, three controls that must not
    dpo              iterative DPO in the same worlds, at its own settings
    spin             SPIN in the same worlds, on a careful waiter's demonstrations
    cycle            SPPO's real learner against the closed form in a game with a known equilibrium
    coverage         SPAC, DPO and SFT offline, where half of the data covers little
    self-rewarding   a small policy that judges itself, and what length control mends

Exit code 0 says that every claim held; runs/proof/proof.json has the figures. An interrupted proof continues.
"""

import argparse
import json
import sys
from collections.abc import Callable

from rich.console import Console

from engine.errors import KumiteError
from recipes.experiments import games
from recipes.experiments.tearoom import experiment as tearoom
from recipes.experiments.tearoom import self_rewarding
from recipes.experiments.trials import FOLDER, Outcome

PARTS: dict[str, Callable[[Console], Outcome]] = {
    "sppo": tearoom.sppo,
    "dpo": tearoom.dpo,
    "spin": tearoom.spin,
    "cycle": games.cycle,
    "coverage": games.coverage,
    "self-rewarding": self_rewarding.self_rewarding,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="parts to measure; all if none is named")
    names = parser.parse_args().parts or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    outcomes: dict[str, Outcome] = {}
    try:
        for name in names:
            outcomes[name] = PARTS[name](console)
            _keep(name, outcomes[name])
    except KumiteError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    for outcome in outcomes.values():
        for table in outcome.tables:
            console.print(table)
        for line in outcome.lines:
            console.print(line, markup=False)
    return 0 if all(outcome.holds for outcome in outcomes.values()) else 1


def _keep(name: str, outcome: Outcome) -> None:
    """Add a part's figures to proof.json, beside those of the other parts."""
    path = FOLDER / "proof.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[name] = {"holds": outcome.holds, "lines": list(outcome.lines), "figures": outcome.figures}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
