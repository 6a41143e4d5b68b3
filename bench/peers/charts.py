"""Two charts for benchmarks.md and the README: sessile against the best peer, and all servers."""

from html import escape

from measure import KINDS
from results import OURS

STYLE = """
    text { font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
    .page { fill: #ffffff }
    .head { font-weight: 600; font-size: 16px }
    .small { font-size: 12px; fill: #57606a }
    .end { text-anchor: end }
    .ours { fill: #1a7f37 } .worse { fill: #9a6700 } .peer { fill: #8c959f }
    .line { stroke: #57606a; stroke-dasharray: 4 4 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .page { fill: #0d1117 }
      .small { fill: #9da7b3 }
      .ours { fill: #3fb950 } .worse { fill: #d29922 } .peer { fill: #6e7681 }
      .line { stroke: #9da7b3 }
    }
  """
KIND_LABELS = [label for _, end, label in KINDS if end == "client"]
WIDTH, LEFT, ROW, BAR = 860, 330, 26, 16
SCALE_RIGHT = WIDTH - 150


def document(title, description, height, parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'role="img"\n     aria-labelledby="title desc">\n  <title id="title">{escape(title)}</title>\n'
            f'  <desc id="desc">{escape(description)}</desc>\n  <style>{STYLE}</style>\n'
            f'  <rect class="page" width="{WIDTH}" height="{height}" rx="8"/>\n  '
            + "\n  ".join(parts) + "\n</svg>\n")


def text(x, y, words, style=""):
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.0f}" y="{y:.0f}">{escape(words)}</text>'


def bar(y, length, style):
    return f'<rect class="{style}" x="{LEFT}" y="{y}" width="{max(length, 1):.1f}" height="{BAR}" rx="2"/>'


def ratio_rows(results):
    """Rows of the first chart: a label, sessile's ratio to the best other server, and its name."""
    wanted = [("new-file", row, f"{row}, small file", ("new-text",)) for row in KIND_LABELS]
    wanted += [("kept", "HTTP/1.1, file", "kept HTTP/1.1, small file", ()),
               ("kept", "HTTP/2, file", "kept HTTP/2, small file", ()),
               ("kept", "HTTP/2, 10 streams, file", "kept HTTP/2, 10 streams, small file", ()),
               ("proxy", "HTTP/1.1, proxied text", "proxied HTTP/1.1 request", ()),
               ("bulk", "64 MiB files", "a GiB in 64 MiB files", ()),
               ("idle", "HTTP/1.1, after a request on each", "memory of an idle HTTP/1.1 connection", ()),
               ("idle", "HTTP/2, after a request on each", "memory of an idle HTTP/2 connection", ()),
               ("balancers", "OpenSSL client, 4 at a time, µs", "balancer: a TLS connection", ()),
               ("balancers", "1 GiB in four responses, ms", "balancer: a GiB", ())]
    for group, row, label, more in wanted:
        ratio, name = results.ratio(group, row, more)
        if ratio is not None:
            yield label, ratio, name


def ratios(results):
    rows = list(ratio_rows(results))
    widest = max([1.25, *(ratio for _, ratio, _ in rows)])
    unit = (SCALE_RIGHT - LEFT) / widest
    height = 74 + ROW * len(rows) + 14
    one = LEFT + unit
    parts = [text(20, 30, "What sessile costs, compared with the best other program", "head"),
             text(20, 50, "processor time, or memory; shorter is better", "small"),
             text(one, 62, "1.0: the best other", "small"),
             f'<line class="line" x1="{one:.0f}" x2="{one:.0f}" y1="68" y2="{height - 12}"/>']
    for at, (label, ratio, name) in enumerate(rows):
        y = 74 + ROW * at
        parts += [text(LEFT - 10, y + 13, label, "end"), bar(y, ratio * unit, "ours" if ratio <= 1 else "worse"),
                  text(LEFT + max(ratio, 1) * unit + 8, y + 13, f"{ratio:.2f} × {name}")]
    said = "; ".join(f"{label} {ratio:.2f} times {name}" for label, ratio, name in rows)
    return document("The cost of sessile compared with the best other program", said + ".", height, parts)


def servers(results):
    blocks = []
    for group, row, title in (("new-text", "TLS 1.3, resumed", "New connection, TLS 1.3, resumed"),
                              ("new-text", "TLS 1.2, session ID", "New connection, TLS 1.2, session ID"),
                              ("kept", "HTTP/1.1, file", "Request on a kept connection, HTTP/1.1, small file"),
                              ("kept", "HTTP/2, 10 streams, file", "Request on a kept connection, HTTP/2, small file")):
        values = [(results.median(group, row, name), name) for name in results.rows(group).get(row, {})]
        values = sorted((value, name) for value, name in values if value is not None)
        if values:
            blocks.append((title, values))
    parts, y, said = [text(20, 30, "Processor time of each server, in µs", "head"),
                      text(20, 50, "one worker; shorter is better", "small")], 78, []
    for title, values in blocks:
        parts.append(text(20, y, title))
        said.append(title + ": " + ", ".join(f"{name} {value:.1f}" for value, name in values))
        unit = (SCALE_RIGHT - LEFT) / values[-1][0]
        for value, name in values:
            y += ROW - 4
            parts += [text(LEFT - 10, y, name, "end"), bar(y - 13, value * unit, "ours" if name == OURS else "peer"),
                      text(LEFT + value * unit + 8, y, f"{value:.1f}")]
        y += 2 * ROW
    return document("Processor time of each server", "; ".join(said) + ".", y - ROW, parts)


def write(results, docs):
    (docs / "benchmarks-ratios.svg").write_text(ratios(results))
    (docs / "benchmarks-servers.svg").write_text(servers(results))
