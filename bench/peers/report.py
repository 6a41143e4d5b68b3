"""The results as Markdown tables in docs/benchmarks.md, between markers, and two charts."""

import charts
from measure import REQUESTS

# The order of columns.
SERVERS = ("sessile", "nginx", "HAProxy", "Envoy", "Caddy", "h2o", "nginx stable", "HAProxy stable", "hitch")
BALANCERS = ("sessile", "nginx", "HAProxy", "HAProxy, splice-auto", "nginx stable", "HAProxy stable")
EVENTS = {
    "nothing": "nothing", "reload": "reload", "restart": "restart", "kill": "`kill -9`, start",
    "other server": "another server of the farm", "new ticket key": "a new ticket key",
}
MODES = {"default": "default", "farm": "best"}


def number(value):
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def table(results, group, unit, columns, more_groups=(), nginx=False):
    """A row for each kind of work, a column for each program, and sessile's ratios."""
    rows = results.rows(group)
    used = [name for name in columns if any(name in values for values in rows.values())]
    best = "the best other" if not more_groups else "the best other, file or text"
    heads = [unit, *used, *(["sessile ÷ nginx"] if nginx else []), f"sessile ÷ {best}"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    for row in rows:
        cells = [number(results.median(group, row, name)) for name in used]
        if nginx:
            ratio = results.ratio_to(group, row, "nginx")
            cells.append(f"**{ratio:.2f}**" if ratio is not None else "–")
        ratio, name = results.ratio(group, row, more_groups)
        last = f"**{ratio:.2f}** ({name})" if ratio is not None else "–"
        lines.append(f"| {row} | " + " | ".join(cells) + f" | {last} |")
    return "\n".join(lines)


def survival(results):
    rows = results.rows("survival")
    lines = ["| | configuration | " + " | ".join(EVENTS.values()) + " |", "|---|---|" + "---|" * len(EVENTS)]
    for name in SERVERS:
        for mode, label in MODES.items():
            cells = []
            for event in EVENTS:
                values = rows.get(f"{mode}: {event}", {}).get(name)
                cells.append(" / ".join(map(str, values[0])) if values else "–")
            if set(cells) != {"–"}:
                lines.append(f"| {name} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def versions(results):
    known = results.data["versions"]
    return "; ".join(f"{name.removesuffix(' stable')} {known[name]}" + (" (Debian stable)" if "stable" in name else "")
                     for name in SERVERS if name in known)


def measured(results, group):
    about = results.group(group)["measured"]
    requests = f"{REQUESTS * about['connections']} requests"
    count = {"kept": requests, "proxy": requests, "bulk": "512 MiB"}.get(group, f"{about['connections']} connections")
    rounds = {"idle": f"{about['idle']} connections.", "survival": "20 clients."}.get(
        group, f"Medians of {about['rounds']} interleaved rounds of {count}.")
    return f"Measured on {about['date']} ({about['processor']}, {about['system']}). {rounds}"


def sections(results):
    """Pairs of a marker in the document and its text."""
    present = [group for group in results.data["groups"]]
    if present:
        yield "peers, versions", versions(results) + "."
    for group, unit, more in (
            ("new-file", "µs of processor time a connection, small file", ("new-text",)),
            ("new-text", "µs of processor time a connection, text", ()),
            ("kept", "µs of processor time a request", ()),
            ("proxy", "µs of processor time a request", ()),
            ("bulk", "ms of processor time a GiB", ()),
            ("idle", "KiB of memory (PSS) an idle connection", ())):
        if group in present:
            yield f"peers, {group}", measured(results, group) + "\n\n" + table(
                results, group, unit, SERVERS, more, group in ("kept", "idle"))
    if "balancers" in present:
        yield "peers, balancers", (measured(results, "balancers") + "\n\n"
                                   + table(results, "balancers", "processor time, or memory", BALANCERS))
    if "survival" in present:
        yield "peers, survival", measured(results, "survival") + "\n\n" + survival(results)


def replace_section(text, marker, body):
    begin, end = f"<!-- {marker}: written by the benchmark -->", f"<!-- {marker}: end -->"
    if begin not in text or end not in text:
        raise RuntimeError(f"the document has no {begin} … {end}")
    head, rest = text.split(begin, 1)
    return f"{head}{begin}\n\n{body}\n\n{end}{rest.split(end, 1)[1]}"


def write(results, docs):
    """Prints the tables, writes them to benchmarks.md, and draws the charts."""
    document = docs / "benchmarks.md"
    text = document.read_text() if document.exists() else None
    for marker, body in sections(results):
        print(f"\n## {marker}\n\n{body}")
        if text is not None:
            text = replace_section(text, marker, body)
    if text is not None:
        document.write_text(text)
    charts.write(results, docs)
