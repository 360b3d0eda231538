"""Every setting is declared once, and reaches the call, the command line, files, completion and the docs from there."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from tools.settings import PAGE, page

import verifix
from verifix import settings
from verifix.cli.main import application, main, parse
from verifix.cli.options import COMMANDS, CorrectCommand
from verifix.inspection import CollectArguments, InspectArguments
from verifix.options import CorrectArguments, CorrectOptions
from verifix.proof import ProveArguments
from verifix.selection.trusted import TrustArguments
from verifix.settings import HEADINGS, declarations

SOURCE = Path(verifix.__file__).parent
OF_A_FILE = {"config", "print_config"}
LEAST = ["correct", "--model", "py:m.py:f", "--checkpoint", "a.pt", "--verified", "v", "--out", "b.pt"]
LEAST += ["--verified-from", "unseen", "--drawn", "random"]


def help_of(name: str, monkeypatch, capsys) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([name, "--help"]) == 0
    return capsys.readouterr().out


def in_one_line(text: str) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def sample(kind: Any, name: str) -> Any:
    """A value of a setting's type, as it stands in a file; none that is the default."""
    parts = get_args(kind) if isinstance(kind, UnionType) or get_origin(kind) is Union else (kind,)
    for part in parts:
        if get_origin(part) is Literal:
            return get_args(part)[-1]
        if get_origin(part) is Sequence:
            return ["3", "4"]
    if parts[0] is bool:
        return name not in ("padding", "check_labels", "progress")
    return {int: 7, float: 0.25, str: "words"}[parts[0]]


CALLS = {
    verifix.correct: CorrectArguments,
    verifix.prove: ProveArguments,
    verifix.inspect: InspectArguments,
    verifix.collect_moments: CollectArguments,
    verifix.trust: TrustArguments,
}


@pytest.mark.parametrize(("call", "settings"), CALLS.items())
def test_a_call_has_every_setting_with_its_type_default_and_description(call, settings):
    parameters = inspect.signature(call).parameters
    in_place = {field.name for field in fields(settings) if not field.kw_only}
    assert in_place <= {"labels"}
    kinds = [p.kind for p in parameters.values()]
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) == 2 + len(in_place)
    described = inspect.cleandoc(call.__doc__)
    for field in fields(settings):
        kind, text = declarations(settings)[field.name]
        parameter = parameters[field.name]
        assert (parameter.kind is parameter.KEYWORD_ONLY) == (field.name not in in_place)
        assert parameter.default == field.default
        assert parameter.annotation == kind
        assert text
        assert f"{field.name} {text}" in " ".join(described.split())
    assert "settings\n" not in described
    with pytest.raises(TypeError, match="unexpected keyword argument 'alhpa'"):
        call(None, None, alhpa=3)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_every_setting_with_its_description(name, monkeypatch, capsys):
    shown = help_of(name, monkeypatch, capsys)
    assert max(map(len, shown.splitlines())) <= 100
    assert "_" not in "".join(re.findall(r"--[\w-]+", shown))
    declared, text = declarations(COMMANDS[name]), in_one_line(shown)
    assert {field.name for field in fields(COMMANDS[name])} == declared.keys()
    for setting, (_, description) in declared.items():
        assert f"--{setting.replace('_', '-')} " in text
        assert description in text
    headings = [heading for heading in HEADINGS if f"─ {heading} ─" in shown]
    assert headings[0] == "Main options"
    assert [shown.index(f"─ {heading} ─") for heading in headings] == sorted(
        shown.index(f"─ {heading} ─") for heading in headings
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_may_say_every_setting_of_a_command_with_its_type(name, tmp_path):
    kinds = get_type_hints(COMMANDS[name])
    given = {f.name: sample(kinds[f.name], f.name) for f in fields(COMMANDS[name]) if f.name not in OF_A_FILE}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(given))
    words = [name, "--config", str(tmp_path / "c.yaml")]
    _, bound, _ = application().parse_args(words, exit_on_error=False, print_error=False)
    found = {setting: value for setting, value in bound.arguments.items() if setting not in OF_A_FILE}
    assert {k: ",".join(v) if isinstance(v, list) else v for k, v in found.items()} == {
        k: ",".join(v) if isinstance(v, list) else v for k, v in given.items()
    }
    assert {type(found[k]) for k, v in given.items() if isinstance(v, bool)} <= {bool}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_parses(name, monkeypatch, capsys):
    shown = in_one_line(help_of(name, monkeypatch, capsys))
    (example,) = re.findall(r"Example: verifix (.*?) Main options", shown)
    assert isinstance(parse(shlex.split(example)), COMMANDS[name])


def test_a_setting_of_the_call_is_declared_in_one_place():
    names = {field.name for field in fields(CorrectArguments)}
    declared: dict[str, list[str]] = {name: [] for name in names}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and (node.name.endswith(("Options", "Arguments", "Command"))):
                for entry in node.body:
                    if isinstance(entry, ast.AnnAssign) and ast.unparse(entry.target) in names:
                        declared[ast.unparse(entry.target)].append(node.name)
    declared["seed"].remove("DemoCommand")  # the first of several
    declared["labels"].remove("SelectCommand")  # whether there are any
    declared["classes"].remove("DataOptions")  # may also be a file
    assert len(inspect.signature(verifix.correct).parameters) == len(names) + 2
    assert {name: len(places) for name, places in declared.items()} == dict.fromkeys(names, 1)
    assert issubclass(CorrectCommand, CorrectOptions)
    assert issubclass(CorrectArguments, CorrectOptions)


def test_without_the_source_there_are_no_descriptions_and_all_else_works(monkeypatch, capsys):
    def missing(_: object) -> str:
        raise OSError("could not get source code")

    settings._classes.cache_clear()
    monkeypatch.setattr(settings.inspect, "getsource", missing)
    try:
        assert "--batch-size" in help_of("score", monkeypatch, capsys)
        call = settings.takes(CorrectArguments)(lambda model, verified, settings: settings.alpha)
        assert call(None, None, alpha=3) == 3
    finally:
        settings._classes.cache_clear()


def test_the_page_of_settings_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/settings.py"


def test_no_help_loads_torch():
    code = (
        "import sys\nfrom verifix.cli.main import main\nfrom verifix.cli.options import COMMANDS\n"
        "for words in ([], *([name] for name in COMMANDS)):\n    assert main([*words, '--help']) == 0\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_flags_and_words(shell, tmp_path):
    script = application().generate_completion(shell=shell)
    for word in (*COMMANDS, "batch-size", "no-padding", "low-curvature"):
        assert word in script
    (tmp_path / "script").write_text(script)
    if shutil.which(shell):
        subprocess.run([shell, "-n", tmp_path / "script"], check=True, timeout=60)


def test_bash_completes_for_real(tmp_path):
    (tmp_path / "script").write_text(application().generate_completion(shell="bash"))
    lines = ["verifix sc", "verifix correct --batch", "verifix correct --trust l", "verifix demo "]
    code = 'source "$1"; f=$(complete -p verifix | sed "s/.*-F \\([^ ]*\\).*/\\1/")\n'
    for line in lines:
        words = line.split(" ")
        code += f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; COMPREPLY=()\n"
        code += f"$f verifix {shlex.quote(words[-1])} {words[-2]}; echo ${{COMPREPLY[@]}}\n"
    result = subprocess.run(
        ["bash", "-c", code, "bash", tmp_path / "script"], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.splitlines() == ["score", "--batch-size", "low-loss low-curvature", "digits spiral"]


def test_completion_is_installed_where_it_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", "--shell", "fish", "--output", str(tmp_path / "v.fish")]) == 0
    assert "complete -c verifix" in (tmp_path / "v.fish").read_text()


WRONG = {
    "alpa: 3": "has alpa, which is no setting of this command; did you mean alpha?",
    "alpha: strong": "alpha in c.yaml cannot be strong",
    "alpha: [1, 2]": "alpha",
    "alpha: {a: 2}": "c.yaml is not a file of settings",
    "folds: yes": "folds in c.yaml cannot be yes",
    "folds: 2.5": "folds in c.yaml cannot be 2.5",
    "padding: maybe": "padding in c.yaml cannot be maybe",
    "weights: emma": 'Choose from: "auto", "raw", "ema". Did you mean "ema"?',
    "config: d.yaml": "has config, which only the command line can say",
    "folds: 3\nfolds: 4": "has folds twice",
    "- folds": "c.yaml is not a file of settings (it must name settings, one per line)",
}


@pytest.mark.parametrize("content", WRONG)
def test_a_file_that_is_wrong_is_refused_in_one_line(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(content)
    assert main([*LEAST, "--config", "c.yaml"]) == 2
    assert re.fullmatch(rf"verifix: error: .*{re.escape(WRONG[content])}.*\n", capsys.readouterr().err)


def test_a_file_is_read_as_the_command_line_is(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "classes: [no, yes, 'Crane, bird']\nalpha: 1e3\ncheck-labels: off\nbudget: 300\nseed:\ninclude: 'a,b'\n"
        "exclude: ['c,d', e]\nmean: [.5, .25, 1]\nmax_length: 012\nclass_shares: no=0.3,yes=0.7\nlabel_column: 1\n"
    )
    found = parse([*LEAST, "--config", str(tmp_path / "c.yaml")])
    assert found.class_names == ["no", "yes", "Crane, bird"]
    assert (found.alpha, found.check_labels, found.budget_seconds, found.seed) == (1000.0, False, 300.0, 0)
    assert (found.include, found.exclude) == (["a", "b"], ["c,d", "e"])
    assert (found.channel_mean, found.max_length, found.label_column) == ([0.5, 0.25, 1.0], 12, "1")
    assert found.shares == {"no": 0.3, "yes": 0.7}


def test_flags_go_before_files_and_later_files_before_earlier_ones(tmp_path):
    for name, alpha, folds in (("a", 1, 3), ("b", 2, 4)):
        (tmp_path / name).write_text(f"alpha: {alpha}\nfolds: {folds}\n")
    files = ["--config", str(tmp_path / "a"), "--config", str(tmp_path / "b")]
    found = parse([*LEAST, *files, "--folds", "6", "--folds", "5"])
    assert (found.alpha, found.folds) == (2, 5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--alpa", "3"], "Unknown option: --alpa. Did you mean --alpha?; see verifix correct --help"),
        (["--seed", "1.5"], "--seed cannot be 1.5"),
        (["--batch-size", "2.5"], "--batch-size cannot be 2.5"),
        (["--batch-size", "1e2"], "--batch-size cannot be 1e2"),
        (["--proof", "nest"], 'Choose from: "none", "split", "nested". Did you mean "nested"?'),
        (["--alpha"], "--alpha needs a value"),
        (["stray"], "there is no place for stray"),
    ],
)
def test_flags_that_are_wrong_are_refused_in_one_line(words, said, capsys):
    assert main([*LEAST, *words]) == 2
    assert re.fullmatch(rf"verifix: error: .*{re.escape(said)}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [],
            "give a command: demo, correct, select, review, import, export, score, compare, inspect, undo; see verifix "
            "--help",
        ),
        (["scor"], 'Unknown command "scor". Did you mean "score"?'),
        (["undo", "a.pt"], "--out needs a value; see verifix undo --help"),
        (["score", "a.pt", "--model", "py:m.py:f"], "--data needs a value"),
    ],
)
def test_commands_that_are_wrong_are_refused_in_one_line(words, said, capsys):
    assert main(words) == 2
    assert re.fullmatch(rf"verifix: error: {re.escape(said)}.*\n", capsys.readouterr().err)


def test_printed_settings_are_a_file_that_says_the_same(tmp_path, capsys):
    words = [*LEAST, "--alpha", "3", "--include", "a,b", "--mean", "-1,0,1", "--no-padding", "--force"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--print-config"])
    assert not ended.value.code
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    found, given = parse(["correct", "--config", str(tmp_path / "c.yaml")]), parse(words)
    assert replace(found, config=None) == given
    with pytest.raises(SystemExit):
        main(["correct", "--print-config"])  # what there is, before anything is given
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings.keys() | OF_A_FILE == {field.name for field in fields(CorrectCommand)}
    assert (settings["alpha"], settings["folds"], settings["model"], settings["padding"]) == ("auto", 5, None, True)


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"verifix {version('verifix')}\n"


def test_lists_with_commas_are_read_whether_or_not_pydantic_is_loaded():
    """The parser lets pydantic check what it was given as soon as any library has imported that."""
    words = ["inspect", "--model", "py:x.py:b", "--input-shape", "3,4", "--text-column", "a,b"]
    asked = f"from verifix.cli.main import parse; found = parse({words}); print(found.input_shape, found.text_column)"
    one, other = (
        subprocess.run([sys.executable, "-c", before + asked], capture_output=True, text=True, check=False)
        for before in ("", "import pydantic; ")
    )
    assert one.stdout, one.stderr
    assert other.stdout == one.stdout, other.stderr
