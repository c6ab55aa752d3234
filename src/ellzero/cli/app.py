"""The commands and their options.

Lives here: what a user may type. Does not live here: what is printed (``show``) or computed (``compare``).
Every bad input is one line on stderr and exit code 2; ``--debug`` before the command shows the traceback.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import ellzero
from ellzero.cli import autoencoder, encoding, retrieval, retrieval_training, serving, show
from ellzero.compare.tasks import TASKS
from ellzero.errors import InputError, MissingExtraError, check_choice, suggestion
from ellzero.protocol import Task

__all__ = ["app", "run"]

app = typer.Typer(
    name="ellzero",
    help="Keep what counts: compare sparse methods on your data, take one home, apply it.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

DEBUG = "ELLZERO_DEBUG"


class Interrupted(Exception):
    """Ctrl-C, with a line that says how to go on."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ellzero {ellzero.__version__}")
        raise typer.Exit


def _debug(wanted: bool) -> None:
    if wanted:
        os.environ[DEBUG] = "1"


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", callback=_debug, help="Show tracebacks.")] = False,
) -> None:
    """Keep what counts: compare sparse methods on your data, take one home, apply it."""


@app.command()
def compare(
    task: Annotated[str, typer.Argument(metavar="TASK", help=f"{', '.join(TASKS)}, or module:object.")],
    file: Annotated[str | None, typer.Argument(metavar="[DATA]", help="The same as --data.")] = None,
    data: Annotated[str | None, typer.Option(help="A file with your data.")] = None,
    queries: Annotated[str | None, typer.Option(help="Queries: .jsonl, or .tsv of ids and texts.")] = None,
    qrels: Annotated[str | None, typer.Option(help="Judgements of documents, TREC's or BEIR's.")] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    model: Annotated[str | None, typer.Option(help="A model: folder, id, or module:function.")] = None,
    hook: Annotated[str | None, typer.Option(help="Where in the model to look.")] = None,
    texts: Annotated[str | None, typer.Option(help="A file with texts.")] = None,
    evaluate: Annotated[str | None, typer.Option("--eval", help="Your own fidelity, module:function.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Another option of the task, key=value; repeat it.")] = None,
    methods: Annotated[str | None, typer.Option(help="a,b,module:object; the task's usual ones if not given.")] = None,
    budgets: Annotated[str | None, typer.Option(help="5,10,20 in the task's unit.")] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions.")] = 1,
    trials: Annotated[int, typer.Option(help="Settings that each method may try.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Run folder; an interrupted run there goes on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the frontier as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars, no table.")] = False,
) -> None:
    """Fit every method at every budget with equal effort; show fidelity against budget."""
    from ellzero.compare.runner import compare as run_comparison
    from ellzero.compare.specs import find_task

    if file is not None and data is not None:
        raise InputError(f"--data: got {data!r} beside {file!r}, want one of them")
    given = {"data": data or file, "target": target, "model": model, "hook": hook, "texts": texts, "eval": evaluate}
    named = {name: value for name, value in (("queries", queries), ("qrels", qrels)) if value is not None}
    chosen = _task(find_task(task), {**given, "extra": {**_pairs(option), **named}})
    folder = out if out is not None else _default_folder(chosen)
    try:
        result = run_comparison(
            chosen,
            _names(methods),
            _numbers(budgets),
            seeds=seeds,
            trials=trials,
            out=folder,
            progress=not quiet and sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; the same command with --out {folder} goes on from there") from None
    if as_json:
        show.as_json(result.as_json())
    elif not quiet:
        show.frontier(result)
    _report(result, as_json)
    if result.points and len(result.failures) == len(result.points):
        raise RuntimeError(f"every fit failed, the first with {result.failures[0].error}")


def _task(kind: Any, given: dict[str, Any]) -> Any:
    if not isinstance(kind, type):
        if not isinstance(kind, Task):
            raise InputError(f"task: {kind!r} is no task; want {', '.join(TASKS)} or a task's class")
        used = [name for name, value in given.items() if value]
        if used:
            raise InputError(f"--{used[0]}: a task given as an object takes no options")
        return kind
    if not hasattr(kind, "from_options"):
        raise InputError(f"task: {kind.__name__} is no task, it has no from_options")
    return kind.from_options(**given)


def _default_folder(task: Any) -> Path:
    """One folder per question, so that the same command finds its interrupted run again."""
    from ellzero.compare.specs import digest, task_record

    return Path("runs") / f"{task.name}-{digest(task_record(task)['describe'])[:8]}"


def _report(result: Any, as_json: bool) -> None:
    """The last line names the report; without plotly it says what is missing, and what is there."""
    say = (lambda text: typer.echo(text, err=True)) if as_json else typer.echo
    try:
        say(f"report: {result.report()}")
    except MissingExtraError as error:
        say(f"frontier: {result.folder / 'frontier.json'}")
        raise MissingExtraError(f"no report was drawn, frontier.json and frontier.csv were: {error}") from error


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    numbers = []
    for part in text.split(","):
        try:
            numbers.append(float(part))
        except ValueError:
            raise InputError(f"--budgets: got {part.strip()!r}, want numbers such as 5,10,20") from None
    return numbers


def _pairs(options: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in options or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--option: got {text!r}, want key=value")
        if name in pairs:
            raise InputError(f"--option: got {name!r} twice")
        pairs[name] = value
    return pairs


@app.command()
def take(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="What `ellzero compare` wrote.")],
    method: Annotated[str, typer.Option(help="A method of the run.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    budget: Annotated[float | None, typer.Option(help="The point nearest to it; not needed for a dense one.")] = None,
    refit: Annotated[str, typer.Option(help="train, or all: training and validation parts.")] = "train",
    as_json: Annotated[bool, typer.Option("--json", help="Print the model's card as JSON.")] = False,
) -> None:
    """Refit one point, measure it on the untouched test part, and write the model."""
    from ellzero.compare.taking import take as take_home

    try:
        taken = take_home(run_dir, method, budget, out, refit)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; nothing was written to {out}") from None
    if as_json:
        show.as_json(taken.card)
    else:
        show.taken(taken)


@app.command()
def apply(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `ellzero take` wrote.")],
    data: Annotated[Path, typer.Argument(help="New data.")],
    out: Annotated[Path | None, typer.Option(help="A .csv, .npz or .jsonl file; printed if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the output as JSON.")] = False,
) -> None:
    """Run a taken model on new data."""
    from ellzero.cli.outputs import check_writable, write
    from ellzero.compare.applying import apply as apply_model

    if out is not None:
        check_writable(out)
    output = apply_model(directory, data)
    if out is not None:
        write(output, out)
    show.output(output, out, as_json)


app.add_typer(retrieval_training.train, name="train")
app.command()(autoencoder.browse)
app.command()(encoding.encode)
app.command()(retrieval.index)
app.command()(retrieval.search)
app.command()(serving.serve)
app.command()(retrieval.export)


@app.command()
def methods(
    wing: Annotated[str | None, typer.Option(help="Only of this wing.")] = None,
    paper: Annotated[str | None, typer.Option(help="Only of this paper's id.")] = None,
    search: Annotated[str | None, typer.Option(help="Only with this word in name, summary or source.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the entries as JSON.")] = False,
) -> None:
    """List what ellzero holds."""
    from ellzero import registry

    rows = registry.index()
    for name, value in (("wing", wing), ("kind", kind), ("paper", paper)):
        if value is not None:
            check_choice(f"--{name}", value, sorted({row[name] for row in rows if row[name]}))
            rows = [row for row in rows if row[name] == value]
    if search is not None:
        texts = [" ".join(str(row[key] or "") for key in ("name", "summary", "source", "claim")) for row in rows]
        rows = [row for row, text in zip(rows, texts) if search.lower() in text.lower()]
    if as_json:
        show.as_json(rows)
    else:
        show.entries(rows)


@app.command()
def config(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Say which compiled kernels are live, the threads, and the vendor BLAS."""
    from ellzero.kernels import show_config

    facts = show_config()
    if as_json:
        show.as_json(dict(facts))
    else:
        show.facts(facts)


def run(arguments: list[str] | None = None) -> int:
    """Run a command line; its exit code. No traceback reaches the user unless ``--debug`` asks for it."""
    os.environ.pop(DEBUG, None)
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = app(arguments, prog_name="ellzero", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Interrupted as error:
        return _say(str(error), 130)
    except (typer.Abort, KeyboardInterrupt):
        return _say("interrupted", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the reader has gone; the interpreter flushes at exit)
        return 0
    except Exception as error:
        if DEBUG in os.environ:
            raise
        return _explain(error)


def _say(text: str, code: int) -> int:
    print(f"ellzero: {' '.join(text.split())}", file=sys.stderr)
    return code


def _explain(error: Exception) -> int:
    """One line for an error: 2 for what the user can mend, 1 for what went wrong inside."""
    if hasattr(error, "format_message"):  # the option parser's own errors
        return _say(_usage(error), getattr(error, "exit_code", 2))
    if isinstance(error, InputError | MissingExtraError):
        return _say(str(error), 2)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in EXTRAS:
        extra = EXTRAS[error.name.split(".")[0]]
        return _say(f"{error.name} is not installed: pip install 'ellzero[{extra}]'", 2)
    return _say(f"{type(error).__name__}: {error} (ellzero --debug ... shows the traceback)", 1)


EXTRAS = {
    "torch": "torch",
    "jaxtyping": "torch",
    "plotly": "report",
    "transformers": "hf",
    "tokenizers": "hf",
    "pyarrow": "data",
    "pandas": "data",
    "Stemmer": "retrieval",
}


def _usage(error: Any) -> str:
    """The parser's message; an unknown option or command gets the nearest one that there is."""
    message = error.format_message().rstrip(".")
    unknown, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if unknown and type(error).__name__ == "NoSuchOption":
        known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        return f"no such option {unknown}{suggestion(unknown, known)}"
    commands = list(getattr(getattr(context, "command", None), "commands", {}))
    if (found := re.match("No such command '([^']*)'", message)) is not None:
        word = found[1]
        return f"no such command {word!r}{suggestion(word, commands) or '; want one of ' + ', '.join(commands)}"
    if message == "Missing command":
        return f"missing command after {context.info_name!r}; want one of {', '.join(commands)}"
    return message[:1].lower() + message[1:]
