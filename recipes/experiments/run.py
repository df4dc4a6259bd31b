"""The measurements behind what README and docs claim.

    make experiments                            (or: python -m recipes.experiments.run)
    python -m recipes.experiments.run sppo cycle          some parts alone

    sppo             the tearoom: three seeds that must improve, three controls that must not
    dpo              iterative DPO in the same worlds, at its own settings
    spin             SPIN in the same worlds, on a careful waiter's demonstrations
    cycle            SPPO's real learner against the closed form in a game with a known equilibrium
    coverage         SPAC, DPO and SFT offline, where half of the data covers little
    self-rewarding   a small policy that judges itself, and what length control changes

Exit code 0 says that every claim holds. The figures are written to runs/experiments/experiments.json, the curves
beside it. The same command continues what was interrupted.
"""

import json
import sys
from collections.abc import Callable

from rich.console import Console

from engine.errors import KumiteError
from recipes.experiments.coverage.experiment import coverage
from recipes.experiments.cycle.experiment import cycle
from recipes.experiments.results import FOLDER, Result
from recipes.experiments.tearoom.curves import draw_curves
from recipes.experiments.tearoom.experiment import dpo, self_rewarding, spin, sppo
from recipes.prepare.command_line import new_parser, write_json

EXPERIMENTS: dict[str, Callable[[Console], Result]] = {
    "sppo": sppo,
    "dpo": dpo,
    "spin": spin,
    "cycle": cycle,
    "coverage": coverage,
    "self-rewarding": self_rewarding,
}


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints tables and returns the exit code."""
    parser = new_parser("recipes.experiments.run", __doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure; everything if none is named")
    names = parser.parse_args(arguments).parts or list(EXPERIMENTS)
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    results: list[Result] = []
    try:
        for name in names:
            results.append(EXPERIMENTS[name](console))
            record(name, results[-1])
    except KumiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for result in results:
        for table in result.tables:
            console.print(table)
        for line in result.lines:
            console.print(line, markup=False)
    return 0 if all(result.holds for result in results) else 1


def record(name: str, result: Result) -> None:
    """Add a part's figures to experiments.json, beside those of the other parts, and draw the curves again."""
    path = FOLDER / "experiments.json"
    experiments = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    experiments[name] = {"holds": result.holds, "lines": list(result.lines), "figures": result.figures}
    write_json(path, experiments)
    draw_curves({part: recorded["figures"] for part, recorded in experiments.items()}, FOLDER)


if __name__ == "__main__":
    sys.exit(main())
