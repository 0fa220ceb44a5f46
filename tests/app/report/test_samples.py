"""Answers of each member by itself: drawn by a tiny ensemble, kept, gone on with, judged from the command line."""

import json
from pathlib import Path

import pytest

import softspec
from softspec.app.cli.main import main
from softspec.app.report.samples import Drawing, draw_samples, read_prompts, read_samples
from softspec.errors import ConfigError, DataError
from softspec.train.data.preferences import PreferenceRow

PROMPTS = ["Colour 1? ", "Colour 2? "]
DRAWING = Drawing(samples=3, max_tokens=4)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tiny_ensembles: dict[str, Path]) -> Path:
    path = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    draw_samples(tiny_ensembles["block-2"], "digest", PROMPTS, path, DRAWING)
    return path


def test_members_answer_by_themselves(kept: Path, tiny_ensembles: dict[str, Path], tmp_path: Path) -> None:
    """Greedily, so that one can see whose answer it is: the token that the member finds likeliest."""
    greedy = tmp_path / "greedy.jsonl"
    drawing = Drawing(samples=1, max_tokens=1, temperature=0.0)
    draw_samples(tiny_ensembles["block-2"], "digest", PROMPTS, greedy, drawing)
    _, sampled = read_samples(greedy)

    with softspec.load(tiny_ensembles["block-2"], backend="transformers") as ensemble:
        (answer,) = ensemble.generate(
            PROMPTS[:1], max_tokens=1, temperature=0, detail="tokens", progress=False
        )
        choices = answer.tokens[0].member_choices
        decode = ensemble.texts.tokenizer.decode
        # The first byte of a character is no text yet.
        texts = [
            decode([token], skip_special_tokens=True).removesuffix("\N{REPLACEMENT CHARACTER}")
            for token in choices
        ]

    assert [own[0] for own in sampled[0].answers] == texts
    header, drawn = read_samples(kept)
    assert (header.num_members, len(drawn), len(drawn[0].answers[0])) == (2, 2, 3)
    assert len({text for own in drawn[0].answers for text in own}) > 1


def test_an_interrupted_run_goes_on_to_the_same_answers(
    kept: Path, tiny_ensembles: dict[str, Path], tmp_path: Path
) -> None:
    part = tmp_path / "part.jsonl"
    text = kept.read_text(encoding="utf-8")
    part.write_text("\n".join(text.splitlines()[:4]) + '\n{"member": 1, "row"', encoding="utf-8")

    draw_samples(tiny_ensembles["block-2"], "digest", PROMPTS, part, DRAWING)

    assert part.read_text(encoding="utf-8") == text


def test_answers_of_something_else_are_not_gone_on_with(
    kept: Path, tiny_ensembles: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="another prompts_digest"):
        draw_samples(tiny_ensembles["block-2"], "digest", ["Colour 3? "], kept, DRAWING)
    part = tmp_path / "part.jsonl"
    part.write_text("\n".join(kept.read_text(encoding="utf-8").splitlines()[:3]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="2 of 4 lines"):
        read_samples(part)
    part.write_text('{"prompt": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"part\.jsonl:1"):
        read_samples(part)


def test_prompts_are_those_of_rows_of_training_too(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    asked = [{"role": "user", "content": "How?"}]
    rows = [
        {"prompt": "How?"},
        {"messages": asked},
        {"messages": [*asked, {"role": "assistant", "content": "So."}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert read_prompts(path) == ["How?", asked, asked]
    path.write_text('{"question": "How?"}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl:1"):
        read_prompts(path)


def test_a_report_asks_members_and_exports_preferences(
    tmp_path: Path, tiny_ensembles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny base refuses nothing, so refusals are put into the mouth of its first member."""
    prompts, pairs, page = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl", tmp_path / "report.html"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    command = ["report", str(tiny_ensembles["block-2"]), "--output", str(page), "--red-team", str(pairs)]
    asked = [*command, "--red-team-prompts", str(prompts), "--samples", "4", "--max-tokens", "4"]
    assert main(asked) == 0
    kept = tmp_path / "report.samples.jsonl"
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    for line in lines[1:]:
        line["answers"] = ["I cannot." if line["member"] == 0 else "Red."] * 4
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    assert main([*command, "--red-team-samples", str(kept)]) == 0

    assert "2 of 2 prompts" in capsys.readouterr().err
    text = page.read_text(encoding="utf-8")
    assert "Red team" in text
    assert "0.2500" in text
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    assert [row["source"] for row in rows] == ["comply", "refuse"] * 2
    assert all(PreferenceRow.model_validate(row).parts()[0] in PROMPTS for row in rows)
    capsys.readouterr()
    other = ["report", str(tiny_ensembles["block-1"]), "--output", str(page), "--red-team-samples", str(kept)]
    assert main(other) == 2
    assert "answers of other members" in capsys.readouterr().err
