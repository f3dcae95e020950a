"""Tables and the plot from the results file."""

import html
from pathlib import Path
from statistics import median

import rows
from shape import MIXED_RANKS, RANK, SMALL

COLUMNS = [row.name for row in rows.ROWS if row.group == "table"]


class Figures:
    def __init__(self, results: dict) -> None:
        self.figures = results["figures"]

    def of(self, peer: str, row: str) -> float | None:
        values = self.figures.get(peer, {}).get(row)
        return median(values) if values else None

    def best(self, row: str, *peers: str) -> float | None:
        return max((rate for peer in peers if (rate := self.of(peer, row))), default=None)


def text(results: dict) -> str:
    figures, machine = Figures(results), results["machine"]
    lines = [f"{results['date']}, {machine['cores']} cores of {machine['cpu']}, {' '.join(machine['instructions'])}"]
    lines.append(", ".join(f"{name} {value}" for name, value in results["limits"].items()) or "limits of the machine: not measured")
    if results.get("disturbed"):
        lines.append(f"measurements that other processes disturbed each time: {results['disturbed']}")
    lines += ["", *table(figures, results), "", *targets(figures, results["limits"]), *own(results.get("own", {}), figures)]
    return "\n".join(lines)


def table(figures: Figures, results: dict) -> list[str]:
    lines = ["| tokens/s | " + " | ".join(COLUMNS) + " | first tokens as f32 |", "|---" * (len(COLUMNS) + 2) + "|"]
    for peer in figures.figures:
        cells = [shown(figures.of(peer, row)) for row in COLUMNS]
        same = ", ".join(str(count) for count in results["agreement"].get(peer, []))
        lines.append(f"| {peer} | " + " | ".join(cells) + f" | {same} |")
    others = {row.name: row for row in rows.ROWS if row.group != "table"}
    for peer, measured in figures.figures.items():
        extra = [f"{row} {shown(figures.of(peer, row))}" for row in measured if row in others]
        if extra:
            lines.append(f"\n{peer}, tokens/s: {', '.join(extra)}")
    lines += ["", *(f"- {peer}: {version}" for peer, version in results["versions"].items() if peer in figures.figures)]
    lines += [f"- not measured: {peer}: {reason}" for peer, reason in results["unmeasured"].items()]
    return lines


def shown(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f}" if rate >= 20 else f"{rate:.1f}"


def targets(figures: Figures, limits: dict) -> list[str]:
    """What issue 4 asks for, as ratios of this run."""
    lines = ["| goal | at least | here |", "|---|---|---|"]

    def goal(what: str, least: float, ours: float | None, theirs: float | None) -> None:
        here = f"{ours / theirs:.2f}" if ours and theirs else "not measured"
        lines.append(f"| {what} | {least:g} | {here} |")

    def ratio(what: str, least: float, row: str, ours: str, *peers: str) -> None:
        goal(what, least, figures.of(ours, row), figures.best(row, *peers))

    for ours, llama, openvino, bits in (("myriad-bf16", "llama.cpp-bf16", "openvino-bf16", 16), ("myriad-int8", "llama.cpp-q8_0", "openvino-int8", 8)):
        name = f"{'bf16' if bits == 16 else '8-bit'}"
        ratio(f"decode, 1 request, {name}: x {llama}", 1.15, "decode-1-none", ours, llama)
        rate, bandwidth = figures.of(ours, "decode-1-none"), limits.get("read_gb_per_s")
        read = rate and rate * SMALL.read_parameters() * bits / 8 / 1e9
        goal(f"decode, 1 request, {name}: of the read bandwidth", 0.85, read, bandwidth)
        for requests in (8, 32):
            ratio(f"decode, {requests} requests, {name}: x the better of llama.cpp and OpenVINO", 1.3, f"decode-{requests}-none", ours, llama, openvino)
    for tokens, share in ((512, 0.75), (2048, 0.70)):
        row = f"prompt-{tokens}"
        ratio(f"prompt of {tokens} tokens, bf16: x openvino-bf16", 1.1, row, "myriad-bf16", "openvino-bf16")
        rate, peak = figures.of("myriad-bf16", row), limits.get("bf16_gflop_per_s")
        goal(f"prompt of {tokens} tokens, bf16: of the bf16 peak", share, rate and rate / tokens * SMALL.prompt_flops(tokens) / 1e9, peak)
    for requests, times in ((8, 5), (32, 10)):
        row = f"decode-{requests}-distinct"
        ratio(f"decode, {requests} requests, as many adapters: x llama.cpp-bf16", times, row, "myriad-bf16", "llama.cpp-bf16")
        own = figures.of("myriad-bf16", f"decode-{requests}-none")
        goal(f"decode, {requests} requests, as many adapters: of our own without", 0.7, figures.of("myriad-bf16", row), own)
    lines.append(mixed_ranks(figures))
    return lines


def own(measured: dict, figures: Figures) -> list[str]:
    lines = []
    if first := figures.of("myriad-bf16", "prompt-16"):
        lines.append(f"| time to first token, prompt of 16 tokens, idle server | 1.1 forwards | {16e3 / first:.1f} ms |")
    if hit := measured.get("prefix_hit"):
        lines.append(f"| prompt of 2,000 tokens, cached: x of the miss | at most 0.05 | {hit['ratio']:.3f} ({hit['hit_ms']:.1f} of {hit['miss_ms']:,.0f} ms) |")
    if start := measured.get("start_to_answer"):
        lines.append(f"| start to first answer, 0.5B parameters in the page cache | at most 1.5 s | {start['seconds']:.2f} s |")
    return lines


def mixed_ranks(figures: Figures) -> str:
    """What adapters add to a step, per byte of theirs: ranks 8 to 64 mixed against rank 16 throughout."""
    none, same, mixed = (figures.of("myriad-bf16", f"decode-8-{kind}") for kind in ("none", "distinct", "mixed-ranks"))
    start = "| decode, 8 requests, ranks 8 to 64 mixed: cost per byte x that of rank 16 | at most 1.1 |"
    if not (none and same and mixed) or same >= none:
        return f"{start} not measured |"
    bytes_ratio = sum(MIXED_RANKS) / len(MIXED_RANKS) / RANK
    return f"{start} {(1 / mixed - 1 / none) / (1 / same - 1 / none) / bytes_ratio:.2f} |"


WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 400, 64, 56, 150, 52
COLOURS = {"myriad-bf16": "#c2410c", "llama.cpp-bf16": "#475569"}
NAMES = {"myriad-bf16": "Myriad", "llama.cpp-bf16": "llama.cpp"}


def write_plot(results: dict, path: Path) -> bool:
    """Throughput of 32 requests against the distinct adapters among them. Forty lines of SVG: a plotting library would be a hundred
    megabytes for two lines, and its files change with its version."""
    figures = Figures(results)
    lines = {peer: [(count, rate) for count, row in rows.PLOT.items() if (rate := figures.of(peer, row))] for peer in COLOURS}
    lines = {peer: points for peer, points in lines.items() if len(points) > 2}
    if not lines:
        return False
    top = max(rate for points in lines.values() for _, rate in points) * 1.08
    step = next(step for step in (50, 100, 200, 500, 1000, 2000) if top / step <= 8)
    places = list(rows.PLOT)

    def x(count: int) -> float:
        return LEFT + places.index(count) * (WIDTH - LEFT - RIGHT) / (len(places) - 1)

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - rate / top * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" fill="#334155">']
    out.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>')
    out.append(label(LEFT, 22, "Generated tokens per second, 32 requests at the same time", "start", 'font-size="15" font-weight="bold"'))
    machine = f"135M Llama shape, bf16, rank 16 on all linears, {results['machine']['cores']} cores, {results['date']}"
    out.append(label(LEFT, 41, machine, "start", 'font-size="12"'))
    for rate in range(0, int(top), step):
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(rate):.1f}" y2="{y(rate):.1f}" stroke="#e2e8f0"/>')
        out.append(label(LEFT - 8, y(rate) + 4, f"{rate:,}", "end"))
    out += [label(x(count), HEIGHT - BOTTOM + 18, str(count), "middle") for count in places]
    out.append(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "distinct adapters among the requests", "middle"))
    for peer, points in lines.items():
        line = " ".join(f"{x(count):.1f},{y(rate):.1f}" for count, rate in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[peer]}" stroke-width="2.5"/>')
        out += [f'<circle cx="{x(count):.1f}" cy="{y(rate):.1f}" r="3.5" fill="{COLOURS[peer]}"/>' for count, rate in points]
        count, rate = points[-1]
        out.append(label(x(count) + 12, y(rate) + 4, f"{NAMES[peer]} {rate:,.0f}", "start", f'fill="{COLOURS[peer]}" font-weight="bold"'))
    path.write_text("\n".join([*out, "</svg>"]) + "\n")
    return True


def label(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{html.escape(words)}</text>'
