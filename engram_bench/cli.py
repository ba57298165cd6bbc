"""The command `engram-bench`. Each subcommand imports what it needs only when it runs, so that --help is fast."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from engram_bench import __version__, shipped
from engram_bench.errors import UsageError

ADAPTER = "folder made by engram-bench train VARIANT --out"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 on success; 1 if a comparison regressed or a fact was not learned; 2 on bad usage or input, 4
        on a bad baseline, both with one line on stderr; 130 on Ctrl-C.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["bench"] and given[1:] not in (["-h"], ["--help"]):
        _bench(given[1:])
    args = _parser().parse_args(given)
    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)  # peft 0.21
    try:
        return args.run(args) or 0
    except UsageError as error:
        print(f"engram-bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    purpose = "Measure what Engram-style memory adds to a small language model."
    parser = argparse.ArgumentParser(prog="engram-bench", description=purpose)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    bench = "run the shipped suites, from any folder"
    note = "It takes pytest's options, such as --engram-profile quick -k facts -n 2; pytest --help lists them all."
    commands.add_parser("bench", help=bench, usage="%(prog)s [pytest options]", description=f"{bench}. {note}")

    model = commands.add_parser("model", help="fetch a model, verify it, and print its folder")
    model.add_argument("id", nargs="?", default="bundled", help="bundled (default), hub id, ID@REVISION or folder")
    model.set_defaults(run=_model)

    data = commands.add_parser("data", help="export the items as JSONL for mlx_lm.lora, or as tasks for lm-eval")
    files = "folder to write train.jsonl, valid.jsonl and test.jsonl to, or the tasks"
    data.add_argument("--out", required=True, type=Path, metavar="DIR", help=files)
    source = "a pattern file, a folder of them, or a table of facts (default: the shipped pattern files)"
    data.add_argument("--patterns", type=Path, default=shipped.PATTERNS, metavar="PATH", help=source)
    form = "messages (default), completions or lm-eval"
    data.add_argument("--format", default="messages", metavar="FORMAT", help=form)
    data.add_argument("--profile", default="default", metavar="PROFILE", help="how many items: quick, default or full")
    data.add_argument(
        "--seed", default="0", metavar="N", help="random seed for the choice and order of the items (default 0)"
    )
    data.set_defaults(run=_data)

    train = commands.add_parser("train", help="train one adapter unless it is cached, and print its folder")
    train.add_argument("variant", help="a built-in variant or a YAML file")
    for name in ("profile", "backend", "model", "lora-engine", "seeds", "patterns"):
        dest = f"engram_{name.replace('-', '_')}"
        train.add_argument(f"--{name}", dest=dest, metavar="VALUE", help=f"same as pytest's --engram-{name}")
    train.add_argument(
        "--out", type=Path, metavar="DIR", help="copy the adapter to DIR; engram-bench write needs a copy"
    )
    train.add_argument("--retrain", dest="engram_retrain", action="store_true", help="train it even if it is cached")
    train.set_defaults(run=_train)

    facts = commands.add_parser("facts", help="train on a table of your own facts, ask it, and leave the adapters")
    table = (
        "table of facts: .csv, .tsv, .jsonl or .xlsx with the columns key and value, or subject, relation and object"
    )
    facts.add_argument("file", type=Path, metavar="FILE", help=f"{table}; or a pattern file")
    folder = "new folder for adapters and report (default: the file's name and -facts)"
    facts.add_argument("--out", type=Path, metavar="DIR", help=folder)
    sentence = "a sentence with {key} in which people ask, trained too; can be repeated"
    facts.add_argument("--say", action="append", default=[], metavar="SENTENCE", help=sentence)
    for name in ("variants", "backend", "model", "lora-engine", "seeds", "samples"):
        dest = f"engram_{name.replace('-', '_')}"
        facts.add_argument(f"--{name}", dest=dest, metavar="VALUE", help=f"same as pytest's --engram-{name}")
    facts.set_defaults(run=_facts)

    many = commands.add_parser("sweep", help="make the runs of a file: a grid, a list or a search, and their table")
    many.add_argument("file", type=Path, metavar="FILE", help="YAML with base, grid, list or search; see docs/sweep.md")
    many.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs (default: the file's name and -runs)")
    many.add_argument("-j", "--jobs", metavar="N", help="runs at once (default: 1 here, with --ray all that fit)")
    where = "make the runs on a Ray cluster: auto, local, or its address; needs engram-bench[ray]"
    many.add_argument("--ray", metavar="ADDRESS", help=where)
    kept = "with --ray: where the runs are kept if nodes do not see the folder, such as s3://bucket/sweep"
    many.add_argument("--store", metavar="URI", help=kept)
    many.add_argument("--dry-run", action="store_true", help="only check the file, and list its runs")
    many.add_argument("--report", action="store_true", help="only write the table of the runs that are done")
    over = "what the plot is over: a measure such as kl (default) or train_seconds, or what was varied, such as items"
    many.add_argument("--x", default="kl", metavar="NAME", help=over)
    up = "the measure that the plot shows (default generality)"
    many.add_argument("--y", default="generality", metavar="MEASURE", help=up)
    many.set_defaults(run=_sweep)

    ask = commands.add_parser("ask", help="ask the model with a trained adapter")
    ask.add_argument("adapter", type=Path, metavar="ADAPTER", help=ADAPTER)
    ask.add_argument("prompt", nargs="?", help="the answer is printed while it is made")
    lines = "ask each line of a file (-: standard input) and print one JSON object a line: prompt, answer"
    ask.add_argument("--prompts", metavar="FILE", help=lines)
    ask.add_argument("--baseline", action="store_true", help="show the untouched model's answer, too")
    ask.add_argument("--max-tokens", default="64", metavar="N", help="longest answer (default 64)")
    ask.set_defaults(run=_on_folder("ask"))

    listed = commands.add_parser("list", help="print an adapter's variant, and the facts written into it")
    listed.add_argument("adapter", type=Path, metavar="ADAPTER", help=ADAPTER)
    listed.set_defaults(run=_on_folder("list"))

    write = commands.add_parser("write", help="store facts in a trained memory, without a training run")
    write.add_argument(
        "adapter",
        type=Path,
        metavar="ADAPTER",
        help="folder made by engram-bench train, with --out, of engram-keyed or engram-hearing",
    )
    write.add_argument("key", nargs="?", help="text that asks for the fact, such as 'the wifi of Bo'")
    write.add_argument("value", nargs="?", help="the answer to store")
    at = "where a hearing memory hears the fact (default: a name that it knows in the key, or the whole key)"
    write.add_argument("--name", metavar="NAME", help=at)
    table = "store the facts of a table, as engram-bench facts reads it; a hearing memory hears them at its subjects"
    write.add_argument("--from", dest="table", type=Path, metavar="FILE", help=table)
    write.set_defaults(run=_on_folder("write"))

    forget = commands.add_parser("forget", help="remove a written fact from a memory")
    forget.add_argument("adapter", type=Path, metavar="ADAPTER", help="folder given to engram-bench write")
    forget.add_argument("key", help="key given to engram-bench write")
    forget.set_defaults(run=_on_folder("forget"))

    export = commands.add_parser("export", help="write a LoRA in the format of peft, mlx-lm or llama.cpp's converter")
    export.add_argument("adapter", type=Path, metavar="ADAPTER", help=ADAPTER)
    export.add_argument("--format", required=True, metavar="FORMAT", help="peft, mlx or gguf-notes")
    export.add_argument("--out", required=True, type=Path, metavar="DIR", help="new folder")
    export.set_defaults(run=_export)

    harness = commands.add_parser("lm-eval", help="run tasks of lm-evaluation-harness without and with an adapter")
    harness.add_argument("adapter", nargs="?", type=Path, metavar="ADAPTER", help=f"{ADAPTER} (default: none)")
    named = "names of tasks, groups or tags, separated by commas, such as engram_bench_example, which needs no network"
    harness.add_argument("--tasks", required=True, metavar="NAMES", help=named)
    harness.add_argument("--include-path", type=Path, metavar="DIR", help="folder with the YAML files of more tasks")
    harness.add_argument("--limit", metavar="N", help="ask only the first N questions of each task")
    harness.add_argument("--num-fewshot", metavar="N", help="solved examples before a question (default: the task's)")
    harness.add_argument("--apply-chat-template", action="store_true", help="ask in the model's chat template")
    harness.add_argument("--batch-size", default="1", metavar="N", help="texts in a forward pass (default 1)")
    harness.add_argument("--out", type=Path, metavar="FILE", help="write the table and lm-eval's results as JSON")
    harness.set_defaults(run=_lm_eval)

    for command in (ask, write, forget, harness):
        for name, default in (("backend", "auto"), ("model", "bundled")):
            same = f"same as pytest's --engram-{name}"
            command.add_argument(f"--{name}", default=default, metavar="VALUE", help=same)

    demo = commands.add_parser("demo", help="show answers with and without adapters, token by token")
    demo.add_argument("--quick", action="store_true", help="six scenes instead of eleven")
    demo.add_argument("--no-pause", action="store_true", help="do not wait for Enter between scenes")
    demo.add_argument("--interactive", action="store_true", help="afterwards, answer typed prompts until Ctrl-C")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="random seed for the items (default 0)")
    demo.add_argument("--record", type=Path, metavar="FILE", help="record it as asciicast v2, for asciinema play")
    for name in ("profile", "backend", "model"):
        demo.add_argument(f"--{name}", dest=f"engram_{name}", metavar="VALUE", help=f"same as pytest's --engram-{name}")
    demo.set_defaults(run=_demo)

    report = commands.add_parser("report", help="rebuild a run's report from its answers, and print its path")
    report.add_argument("folder", type=Path, metavar="RUN_DIR", help="folder of the run, such as reports/runs/latest")
    partial = "rebuild although answers are missing or changed; the report's first line then says so"
    report.add_argument("--partial", action="store_true", help=partial)
    report.add_argument("--track", metavar="PROJECT", help=(track := "log the figures to this project of trackio"))
    report.set_defaults(run=_report)

    runs = "compare runs with the first, paired on items; exit code 1 on a regression"
    compare = commands.add_parser("compare", help=runs)
    compare.add_argument("before", type=Path, metavar="A", help="report.json or folder of the baseline run")
    compare.add_argument("after", type=Path, metavar="B", help="report.json or folder of the run to check")
    compare.add_argument("more", type=Path, nargs="*", default=[], metavar="C", help="more runs to check")
    compare.add_argument("--fail", default="exact:2pt", metavar="MARGIN", help="same as pytest's --engram-gate-fail")
    files = "folder to write compare.md, compare.html and compare.png to"
    compare.add_argument("--out", type=Path, metavar="DIR", help=files)
    compare.add_argument("--track", metavar="PROJECT", help=track)
    compare.set_defaults(run=_compare)
    return parser


def _bench(options: list[str]) -> NoReturn:
    """Replace this process by pytest on the suites, with the current folder's ini file; results go there too."""
    from engram_bench.run.command_line import suites

    command = suites(options)
    os.execv(command[0], command)


def _model(args: argparse.Namespace) -> None:
    from engram_bench.store.models import resolve

    print(resolve(args.id).folder)


def _data(args: argparse.Namespace) -> None:
    from engram_bench.data import patterns
    from engram_bench.data.export import FORMATS, counts, export
    from engram_bench.options import PROFILES, chosen_items, integer, one_of

    one_of("--format", args.format, FORMATS)
    one_of("--profile", args.profile, tuple(PROFILES))
    seed = integer("--seed", args.seed)
    chosen = chosen_items(patterns.load(args.patterns.expanduser()), args.profile, seed)
    print(counts(export(args.out.expanduser(), chosen, args.format, seed)))


def _train(args: argparse.Namespace) -> None:
    from engram_bench.options import check_writable, settle
    from engram_bench.run.bench import Bench
    from engram_bench.run.progress import Reporter
    from engram_bench.store import adapters

    settings = settle({**vars(args), "engram_variants": args.variant}, lambda _: "")
    trained = [variant for variant in settings.variants if variant.config]
    if not trained:
        raise UsageError(f"{args.variant}: this variant has no adapter; name one that has, such as engram")
    if args.out and len(trained) * len(settings.seeds) > 1:
        raise UsageError("--out: only one adapter fits in a folder; name one variant and one seed")
    if args.out:
        check_writable("--out", args.out)
        if any(args.out.iterdir()):
            raise UsageError(f"--out: {args.out}: not empty; choose another folder")
    bench = Bench(settings, Reporter(sys.stderr))
    for variant in trained:
        for seed in settings.seeds:
            folder = bench.trained(variant.name, seed).folder
            if args.out:
                adapters.copy(folder, args.out, variant)
            print(args.out or folder)


def _facts(args: argparse.Namespace) -> int:
    from engram_bench.run import facts

    out = args.out or Path(f"{args.file.stem}-facts")
    options = {name: value for name, value in vars(args).items() if name.startswith("engram_") and value}
    return facts.learn(args.file, out, args.say, options)


def _sweep(args: argparse.Namespace) -> int:
    from engram_bench.options import integer
    from engram_bench.sweep.command import sweep

    jobs = None if args.jobs is None else integer("--jobs", args.jobs)
    if jobs == 0:
        raise UsageError("--jobs: 0 makes no run; give 1 or more")
    if args.store and not args.ray:
        raise UsageError("--store: only runs on a cluster need it; add --ray, or leave it out and use --out")
    out = args.out or Path(f"{args.file.stem}-runs")
    where = {"jobs": jobs, "ray": args.ray, "store": args.store}
    return sweep(args.file, out, **where, dry=args.dry_run, report=args.report, x=args.x, y=args.y)


def _export(args: argparse.Namespace) -> None:
    from engram_bench.run import exporting

    exporting.export(args.adapter, args.format, args.out)
    print(args.out)


def _on_folder(name: str) -> Callable[[argparse.Namespace], int | None]:
    """The command of this name in `run.folder_commands`."""

    def run(args: argparse.Namespace) -> int | None:
        from engram_bench.run import folder_commands

        found: int | None = folder_commands.COMMANDS[name](args)
        return found

    return run


def _lm_eval(args: argparse.Namespace) -> None:
    from engram_bench.run import lm_evaluation

    lm_evaluation.run(args)


def _demo(args: argparse.Namespace) -> None:
    from contextlib import ExitStack, suppress

    from rich.console import Console

    from engram_bench import demo
    from engram_bench.options import settle
    from engram_bench.run.bench import Bench
    from engram_bench.run.progress import Reporter

    settings = settle({**vars(args), "engram_variants": ",".join(demo.VARIANTS)}, lambda _: "")
    screen = Console()
    width = max(demo.NARROWEST, screen.width)
    with ExitStack() as stack:
        console = Console(width=width)
        if args.record:
            try:
                stream = stack.enter_context(demo.recorded(args.record, width, screen.height))
            except OSError as error:
                raise UsageError(f"--record: {args.record}: {error.strerror}; choose another file") from error
            console = Console(file=stream, width=width, force_terminal=True)
        bench = Bench(settings, Reporter(sys.stderr))
        cached = {name: bench.adapters.is_cached(bench.variant(name), settings.seeds[0]) for name in demo.VARIANTS}
        if untrained := [name for name in demo.VARIANTS if not cached[name]]:
            note = "will be trained first, only once: about three minutes each on two CPU cores"
            print(f"{' and '.join(untrained)} {note}", file=sys.stderr)
        for name in demo.VARIANTS:
            bench.adapter(name)

        def pause() -> None:
            if sys.stdin.isatty() and not args.no_pause:
                with suppress(EOFError):
                    screen.input("[dim]Press Enter to continue ")

        stage = demo.Stage(bench)
        demo.show(stage, console, demo.scenes(settings.patterns, args.seed, args.quick), pause)
        if args.interactive:
            demo.interact(stage, console)


def _report(args: argparse.Namespace) -> None:
    from engram_bench.report import tracking
    from engram_bench.report.files import rebuild
    from engram_bench.report.runs import opened

    if args.track:
        tracking.library()
    rebuild(args.folder, args.partial)
    print(args.folder / "report.md")
    for line in tracking.track(opened([args.folder]), args.track) if args.track else ():
        print(line)


def _compare(args: argparse.Namespace) -> int:
    from engram_bench.options import margins
    from engram_bench.report.compare import compare

    paths = [args.before, args.after, *args.more]
    return compare(paths, margins("--fail", args.fail), args.out, args.track or "")


if __name__ == "__main__":
    sys.exit(main())
