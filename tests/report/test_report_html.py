"""Tests of the report as one HTML page: its content, escaped names, and nothing missing."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from report.reports import ALL, EMPTY, HUGE, NASTY, PASSED, UNCHECKED
from report.rich import (
    BENCHMARK,
    DRIFT,
    PARTLY_OPEN,
    PARTS,
    RICH,
    SEVERAL,
    WORST,
    candidate,
    decisions,
    layers,
    rich,
    tensor,
)

from trtopt.codec import decode, encode
from trtopt.report import render
from trtopt.report.page import blocks, headline, picked
from trtopt.types import Report

REPORTS = {**ALL, **PARTS}
every_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
VOID = {"meta", "link", "br"}
INLINE = {"code", "strong", "a"}
MIB = 1 << 20


class Page(HTMLParser):
    """Page as a list of elements, and its text by section."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.text = ""
        self.style = ""
        self._open: list[str] = []
        self._section = "head"
        self.feed(page)
        self.close()
        self.sections = {name: " ".join(text.split()) for name, text in self.sections.items()}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.handle_data("" if tag in INLINE else " ")
        if tag in ("header", "section"):
            self._section = dict(attrs).get("id") or tag
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:  # </td> and </th> may be left out
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.text += data
            self.sections[self._section] = self.sections.get(self._section, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(report: Report) -> Page:
    return Page(render("html", report))


def test_the_verdict_comes_first_and_says_which_output_metric_layer_and_sample() -> None:
    found = page(RICH)
    head = found.sections["header"]
    assert head.index("FAIL") < head.index("1 failed and 1 inconclusive of 4 gates") < head.index("top1")
    assert "✕ fail logits top1 2.30 % 1.00 %" in head
    assert f"{WORST[0].sample} labelled tench" in found.sections["samples"]
    assert f"First divergent layer: {RICH.layers.jump} (Conv, int8), from 51.1 dB at its inputs" in head  # type: ignore[union-attr]


def test_an_inconclusive_verdict_says_how_many_samples_would_settle_it() -> None:
    head = page(PARTLY_OPEN).sections["header"]
    assert "INCONCLUSIVE 1 inconclusive of 3 gates" in head
    assert "about 12,400 samples are needed" in head
    assert "(exit 4 unless --allow-inconclusive)" in head
    allowed = page(replace(PARTLY_OPEN, allow_inconclusive=True)).sections["header"]
    assert "INCONCLUSIVE 1 inconclusive of 3 gates (accepted by --allow-inconclusive)" in allowed


@every_report
def test_the_header_says_what_must_not_be_overlooked(report: Report) -> None:
    if report is not ALL["hostile"]:
        assert all(note in page(report).sections["header"] for note in headline.qualifiers(report))


@pytest.mark.parametrize(("report", "said"), [(PASSED, "PASS 1/1 gates passed"), (EMPTY, "FAIL no gate was evaluated"),
                                              (UNCHECKED, "UNCHECKED no comparison was requested")])  # fmt: skip
def test_a_verdict_without_open_gates_is_a_sentence(report: Report, said: str) -> None:
    assert said in page(report).sections["header"]


def test_a_report_without_a_pass_never_says_pass() -> None:
    for report in (EMPTY, UNCHECKED):
        assert "pass" not in page(report).text.lower()


@pytest.mark.parametrize(
    ("section", "texts"),
    [
        ("pipeline", ["build 2 min 18 s TensorRT 11.0, 25.9 MB", "export cached", "all 3 min 31 s"]),
        ("gates", ["2.30 % 1.12 % to 3.48 % 1.00 %", "embedding cosine 0.9971 0.99", "speedup 3.45 3.41 to 3.49 2"]),
        ("drift", ["logits scores 76.10 % 73.80 % 93.40 %", "14.21 dB", "293 val/n01440764/ILSVRC2012_val_",
                   "1,000 samples, with labels", "16-bit rounding simulated"]),
        ("samples", ["labelled tench", "pixels: 0.1, 0.2", "✓ right tench (9.5) then cock (1.25)",
                     "✕ wrong cock (6.5) another class", "SQNR 4.2 dB, largest error 0.5", "0.5, 0.25"]),
        ("classes", ["tench 60 83.3 % 73.3 % 10.0", "7 40 75.0 % 77.5 % 0", "tench 44 -6 5 +1 11 +5"]),
        ("graph", ["layer3 12 nodes: ", "41 /layer3/block.4/conv/Conv first divergent layer"]),
        ("layers", ["First divergent layer: /layer3/block.4/conv/Conv adds",
                    "41 /layer3/block.4/conv/Conv first divergent layer"]),
        ("benchmark", ["fp32 TensorRT 11.0, NVIDIA H200", "int8 32 with 7.44 0.4 % 7.37 7.74 8.03 8.84 4,342 3.45x",
                       "int8 32 with 1.0 cores 2.40 GB 412 W", "largest batch 192; batch 256 takes 81.3 GB"]),
        ("precision", ["60 int8 quantized", "20 fp32 its range leaves fp16", "/layer0/block.6/add/Add (Add)"]),
        ("calibration", ["/layer0/block.0/conv/Conv_output_0 entropy 9 20.48 0.042 % 19.6 dB"]),
        ("environment", ["gpu NVIDIA H200", "SHA-256", "opset 19", "10 fp16, 7 int8 layers, read back"]),
    ],
)  # fmt: skip
def test_each_part_says_what_was_found(section: str, texts: list[str]) -> None:
    said = page(RICH).sections[section]
    for text in texts:
        assert text in said


def test_several_candidates_share_one_table_with_the_best_marked() -> None:
    found = page(SEVERAL)
    said = found.sections["candidates"]
    assert "★ Pareto-best fp16/ fp16 51.2 MB" in said
    assert "14.2 dB 0.58 ms (batch 8) ✕ fail" in said
    assert Counter(said)["★"] == 1 + 2 * 3 + 1  # in the text, each of three in table and chart, in the caption
    (chart,) = [each["aria-label"] for each in found.all("svg") if each["class"] == "chart middle"]
    assert "int8-minmax/ 25.9 MB, 14.20 dB;" in str(chart)
    assert "fp8/ 26.1 MB, 34.90 dB, Pareto-best" in str(chart)


@pytest.mark.parametrize(
    ("section", "without"),
    [
        ("candidates", {"candidates": ()}), ("pipeline", {"stages": ()}), ("warnings", {"warnings": ()}),
        ("drift", {"comparison": None}), ("layers", {"layers": None}), ("benchmark", {"benchmark": None}),
        ("precision", {"typed": None}), ("calibration", {"calibration": ()}), ("parity", {"parity": None}),
    ],
)  # fmt: skip
def test_a_missing_part_leaves_no_trace(section: str, without: dict[str, Any]) -> None:
    full = replace(RICH, parity=DRIFT, candidates=SEVERAL.candidates)
    title = dict(picked.sections(full))[section]
    there, gone = page(full), page(replace(full, **without))
    assert section in there.sections
    assert section not in gone.sections
    assert f">{title}</h2>" in render("html", full)
    assert f">{title}</h2>" not in render("html", replace(full, **without))


def test_a_bare_report_is_a_page() -> None:
    bare = replace(UNCHECKED, stages=(), warnings=(), typed=None, engine=None, environment={})
    assert list(page(bare).sections) == ["head", "header", "environment"]


@every_report
def test_the_page_needs_nothing_from_elsewhere_and_runs_only_its_own_script(report: Report) -> None:
    found = page(report)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"iframe", "object", "embed", "base", "form", "audio", "video", "use", "image"}
    assert [link["href"] for link in found.all("link")] == ["data:,"]
    assert all(str(anchor["href"]).startswith("#") for anchor in found.all("a"))
    assert not re.search(r"url\(|@import|@font-face|https?:|//", found.style)
    policy = next(meta["content"] for meta in found.all("meta") if "http-equiv" in meta)
    assert re.fullmatch(
        r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-[\w+/]+='; img-src data:; base-uri 'none'; "
        "form-action 'none'",
        str(policy),
    )
    assert found.all("script") == [{}]
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in found.all("img"))
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), tag


@every_report
def test_the_page_can_be_read_by_everyone(report: Report) -> None:
    found = page(report)
    assert found.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(cell.get("scope") in ("row", "col") for cell in found.all("th"))
    tables = [tag for tag, _ in found.elements if tag in ("table", "caption")]
    assert tables == ["table", "caption"] * (len(tables) // 2)
    assert all(image["alt"] for image in found.all("img"))
    for chart in found.all("svg"):
        assert chart.get("aria-hidden") == "true" or (chart["role"] == "img" and chart["aria-label"])
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(anchor["href"])[1:] for anchor in found.all("a")} <= set(ids)


def test_an_image_that_is_not_a_data_uri_is_not_shown() -> None:
    assert RICH.comparison is not None
    for image in ("https://evil.example/x.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,A" onload="x'):
        exhibits = (replace(RICH.comparison.exhibits[0], image=image),)
        report = replace(RICH, comparison=replace(RICH.comparison, exhibits=exhibits))
        assert page(report).all("img") == []


def test_confusions_of_many_classes_are_a_list_of_pairs() -> None:
    assert RICH.comparison is not None
    output = RICH.comparison.outputs[0]
    assert output.by_class is not None
    many = replace(output.by_class, found=1000)
    report = replace(RICH, comparison=replace(RICH.comparison, outputs=(replace(output, by_class=many),)))
    said = page(report).sections["classes"]
    assert "the 2 of 1000 classes with the largest losses" in said
    assert "tench 7 6 11" in said
    assert "Confusion matrix" not in said


def test_a_graph_without_names_is_cut_into_equal_blocks() -> None:
    nodes = tuple(replace(each, node=f"n{place}") for place, each in enumerate(decisions(1000)))
    report = replace(RICH, layers=None, typed=replace(RICH.typed, decisions=nodes))  # type: ignore[type-var]
    found = blocks.blocks(report)
    assert [len(block.nodes) for block in found] == [25] * 40
    assert found[1].name == "nodes 26 to 50"
    assert "The noise at each node was not measured" in page(report).sections["graph"]


def _named(report: Report, name: str) -> Report:
    """Return the report with every text replaced by that name, including the keys of maps."""
    fixed = {"verdict", "status", "limited_by", "metric"}
    known = ("inf", "-inf", "nan", "", "cpu", "cuda")

    def renamed(node: Any, field: str = "") -> Any:
        if isinstance(node, dict):
            maps = field in ("environment", "audit", "readings", "bounds", "counts")
            return {(f"{name}{key}" if maps else key): renamed(value, key) for key, value in node.items()}
        if isinstance(node, list):
            return [renamed(value, field) for value in node]
        return name if isinstance(node, str) and field not in fixed and node not in known else node

    found: Report = decode(Report, renamed(encode(report)))
    return found


HOSTILE = (
    NASTY,
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)><svg onload=alert(1)>",
    "</style></title><script src=//evil.example></script>",
    "{{ 7 * 7 }}{% include 'style.css' %}",
    "--></svg><foreignObject>]]><![CDATA[",
    "javascript:alert(1)",
    "&lt;b&gt;&amp;\u202e\u200d",
)


@pytest.mark.parametrize("report", [replace(PARTS["rich"], parity=DRIFT), SEVERAL], ids=["rich", "several"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_never_becomes_markup(report: Report, name: str) -> None:
    # The page splits commands at spaces, so the plain name has as many words.
    plain, hostile = page(_named(report, re.sub(r"\S", "a", name))), page(_named(report, name))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    for (tag, attributes), (_, expected) in zip(hostile.elements, plain.elements, strict=True):
        assert attributes.keys() == expected.keys(), tag
        same = {key: value for key, value in expected.items() if key not in ("aria-label", "content")}
        assert {key: attributes[key] for key in same} == same
    assert hostile.style == plain.style


def test_names_are_shown_as_they_are_but_for_what_cannot_be_shown() -> None:
    name = "a<b>&\"'{{x}}\u202e\x1b[2J"
    said = page(_named(PARTS["rich"], name)).sections
    for section in ("header", "pipeline", "gates", "drift", "layers", "precision", "calibration", "environment"):
        assert "a<b>&\"'{{x}}\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[2J" in said[section], section


@every_report
def test_no_character_is_left_that_moves_text_or_breaks_the_page(report: Report) -> None:
    assert all(character.isprintable() or character == "\n" for character in render("html", report))


def test_a_model_of_a_thousand_layers_stays_below_a_mebibyte_and_lists_them_all() -> None:
    text = render("html", rich(1000))
    assert len(text.encode()) < MIB
    found = Page(text)
    assert "1000 /layer83/block.3/matmul/MatMul" in found.sections["graph"]
    assert "more nodes" not in found.sections["graph"]
    assert text.count("<i class=") == 1000


def test_names_of_any_length_stay_below_a_mebibyte_and_what_is_cut_is_counted() -> None:
    long = "&é" * 5000
    everything = replace(
        HUGE,
        layers=layers(1000, damaged=300),
        typed=replace(HUGE.typed, decisions=decisions(1000)),  # type: ignore[type-var]
        calibration=tuple(tensor(place) for place in range(100)),
        benchmark=replace(BENCHMARK, timings=BENCHMARK.timings * 50, targets=BENCHMARK.targets * 50),
        parity=HUGE.comparison,
        environment={f"{place}": "v" for place in range(1000)},
    )
    several = replace(
        SEVERAL, candidates=tuple(candidate(str(i), i, 30.0, latency=1.0, pareto=True) for i in range(1, 500))
    )
    for report in (everything, several):
        text = render("html", _named(report, long))
        assert len(text.encode()) < MIB
        assert "… and " in text


def test_every_layer_has_its_mark_until_they_are_too_many_to_tell_apart() -> None:
    def drawn(count: int) -> tuple[str, int]:
        report = replace(RICH, typed=None, layers=layers(count, damaged=count // 2))
        chart = re.search(r'<svg [^>]*class="chart wide".*?</svg>', render("html", report))
        assert chart
        return chart[0], chart[0].count('class="mark ')

    assert [drawn(count)[1] for count in (3, 300, 301)] == [3, 300, 0]
    for count in (3, 300, 301, 1500):
        chart, _ = drawn(count)
        assert chart.count('class="ring"') == 1
        assert len(chart) < 60_000
        assert f"first divergent layer: {layers(count, damaged=count // 2).jump}, " in chart


def test_layers_without_a_divergent_one_are_drawn_without_a_mark() -> None:
    calm = replace(RICH, layers=replace(layers(12, damaged=4), jump="", reason="no layer stands out"))
    text = render("html", calm)
    assert "no layer stands out." in text
    assert 'class="ring"' not in text
    assert "First divergent layer" not in text


def test_non_finite_values_are_listed_but_not_drawn() -> None:
    broken = layers(4, damaged=2).layers
    values = (math.nan, -math.inf, math.inf, 1e308)
    drift = tuple(
        replace(layer, sqnr=value, sqnr_in=-value, added=value) for layer, value in zip(broken, values, strict=True)
    )
    odd = replace(
        RICH,
        layers=replace(layers(4, damaged=2), layers=drift),
        calibration=(replace(tensor(0, 4), amax=math.nan, noise=math.nan), replace(tensor(1, 4), noise=0.0)),
        stages=tuple(replace(stage, seconds=math.nan) for stage in RICH.stages),
    )
    text = render("html", odd)
    assert not re.search(r'(?:d|x|y|x1|cx|width)="[^"]*(?:nan|inf)', text)
    assert "no signal" in page(odd).sections["layers"]
    assert "identical" in page(odd).sections["calibration"]


def _palette(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))


def _luminance(colour: str) -> float:
    """Return the relative luminance, as WCAG 2.2 defines it."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_aa_in_light_and_dark() -> None:
    light, dark = page(PASSED).style.split("@media screen and (prefers-color-scheme: dark)")
    for colours in (_palette(light), {**_palette(light), **_palette(dark.split("@media")[0])}):
        texts = [("text", "page"), ("muted", "page"), ("accent", "page"), ("text", "soft"), ("muted", "soft")]
        for tone in ("pass", "fail", "open", "none"):
            texts += [(tone, f"{tone}-soft"), ("text", f"{tone}-soft"), (tone, "page")]
        for front, back in texts:
            assert _contrast(colours[front], colours[back]) >= 4.5, (front, back)
        for mark in ("int8", "fp8", "fp16", "bf16", "fp32", "other", "warm"):  # WCAG asks 3 of what is drawn
            assert _contrast(colours[mark], colours["page"]) >= 3, mark


def test_the_colours_of_the_style_sheet_are_distinct_in_dark() -> None:
    light, dark = page(PASSED).style.split("@media screen and (prefers-color-scheme: dark)")
    names = _palette(dark.split("@media")[0]).keys()
    assert names == _palette(light).keys()
