"""Runs the Autobahn|Testsuite against each engine's /echo and judges the answers. Started by ./run."""

import argparse
import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "clients"))
from gateway import Gateway  # noqa: E402

WSTEST = ROOT / "tests" / ".venv27" / "bin" / "wstest"
SUITE_SECONDS = 1800

# What the suite is asked for. Its chapters 12 and 13 are about compression, which the gateway does not offer; 8 is empty.
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
CHAPTERS = {
    "1": "Framing",
    "2": "Pings and pongs",
    "3": "Reserved bits",
    "4": "Opcodes",
    "5": "Fragmentation",
    "6": "UTF-8",
    "7": "Closing",
    "9": "Large messages",
    "10": "Auto-fragmentation",
}
CLASSES = ["OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED", "FAILED"]

# INFORMATIONAL is where the standard leaves the choice. NON-STRICT is allowed only here: in 6.4.* a server that fails on
# broken UTF-8 only once the message is complete conforms too, it is just later than it could be.
ALWAYS_ALLOWED = {"OK", "INFORMATIONAL"}
NON_STRICT_ALLOWED = ["6.4.*"]

ECHO_ARGS = [
    "--echo",
    "--limits-message-bytes", "20971520",
    "--limits-outbox-bytes", "67108864",
    "--limits-messages-per-second", "0",
]  # fmt: skip


def in_order(case):
    return [int(part) for part in case.split(".")]


def run_suite(name, url, cases, folder):
    """The suite's own index of one server: case -> behaviour."""
    specification = folder / "fuzzingclient.json"
    specification.write_text(json.dumps({"outdir": str(folder / "reports"), "servers": [{"agent": name, "url": url}], "cases": cases, "exclude-cases": [], "exclude-agent-cases": {}}))
    with open(folder / "wstest.log", "wb") as log:
        # Its own exit code says nothing about the cases.
        subprocess.run([WSTEST, "-m", "fuzzingclient", "-s", specification], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, timeout=SUITE_SECONDS, check=False)
    index = folder / "reports" / "index.json"
    if not index.exists():
        raise SystemExit(f"the suite wrote no report:\n{(folder / 'wstest.log').read_text(errors='replace')[-4000:]}")
    return json.loads(index.read_text())[name]


def complaints(index):
    """Cases that may not stay as they are."""
    found = []
    for case in sorted(index, key=in_order):
        for what in ("behavior", "behaviorClose"):
            verdict = index[case][what]
            lenient = verdict == "NON-STRICT" and any(fnmatch.fnmatch(case, pattern) for pattern in NON_STRICT_ALLOWED)
            if verdict not in ALWAYS_ALLOWED and not lenient:
                found.append(f"{case}: {what} {verdict}")
    return found


def table(results):
    """Rows of chapters, then of all, for each engine."""
    lines = ["| engine | chapter | cases | " + " | ".join(CLASSES) + " | closed cleanly |", "| --- | --- |" + " ---: |" * (len(CLASSES) + 2)]
    for engine, index in results.items():
        chapters = sorted({case.split(".")[0] for case in index}, key=int)
        for chapter in [*chapters, None]:
            rows = [result for case, result in index.items() if chapter is None or case.split(".")[0] == chapter]
            verdicts = Counter(row["behavior"] if row["behavior"] in CLASSES else "FAILED" for row in rows)
            clean = sum(row["behaviorClose"] in ALWAYS_ALLOWED for row in rows)
            label = "**all**" if chapter is None else f"{chapter} {CHAPTERS.get(chapter, '')}"
            lines.append(f"| {engine} | {label} | {len(rows)} | " + " | ".join(str(verdicts[name]) for name in CLASSES) + f" | {clean} |")
    return lines


def document(results):
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    suite = next(line.split("==")[1] for line in (Path(__file__).parent / "requirements.txt").read_text().splitlines() if line.startswith("autobahntestsuite"))
    odd = [
        f"- {engine} {case}: {result['behavior']}" + ("" if result["behaviorClose"] == "OK" else f", close {result['behaviorClose']}")
        for engine, index in results.items()
        for case, result in sorted(index.items(), key=lambda item: in_order(item[0]))
        if (result["behavior"], result["behaviorClose"]) != ("OK", "OK")
    ]
    return "\n".join(
        [
            "# Conformance to RFC 6455",
            "",
            f"shardgate {version} against the fuzzing client of Autobahn|Testsuite {suite}, through `/echo`, once per",
            "socket engine. `tests/autobahn/run` writes this page. It fails on anything but OK, INFORMATIONAL",
            "(the standard leaves the choice) and, in 6.4, NON-STRICT. Not run: 12 and 13 (compression, which the",
            "gateway does not offer); the suite's chapter 8 is empty.",
            "",
            *table(results),
            "",
            *(["Not plainly OK:", "", *odd, ""] if odd else []),
        ]
    )


def main():
    options = argparse.ArgumentParser(prog="tests/autobahn/run", description=__doc__)
    options.add_argument("--engine", action="append", choices=["ring", "epoll"], help="one engine only; both by default")
    options.add_argument("--cases", default=",".join(CASES), help="patterns, comma-separated; docs are written only for all of them")
    options.add_argument("--keep", type=Path, help="keep the suite's own reports in this folder")
    options.add_argument("--url", help="test this echo server, which runs already")
    options.add_argument("--name", default="server", help="its name in the table")
    chosen = options.parse_args()
    cases = chosen.cases.split(",")

    results = {}
    with tempfile.TemporaryDirectory(prefix="shardgate-autobahn-") as scratch:
        base = chosen.keep or Path(scratch)
        for engine in [chosen.name] if chosen.url else chosen.engine or ["ring", "epoll"]:
            folder = base / engine
            folder.mkdir(parents=True, exist_ok=True)
            print(f"running {', '.join(cases)} against {engine}", file=sys.stderr, flush=True)
            if chosen.url:
                results[engine] = run_suite(engine, chosen.url, cases, folder)
            else:
                with Gateway("--engine", engine, *ECHO_ARGS) as gateway:
                    results[engine] = run_suite(engine, f"ws://127.0.0.1:{gateway.port}/echo", cases, folder)
                    if gateway.process.poll() is not None:
                        raise SystemExit(f"the gateway ended during the suite:\n{gateway.log}")

    print("\n".join(table(results)))
    bad = {engine: complaints(index) for engine, index in results.items()}
    for engine, lines in bad.items():
        for line in lines:
            print(f"NOT ALLOWED {engine} {line}")
    failed = sum(len({line.split(":")[0] for line in lines}) for lines in bad.values())
    total = sum(len(index) for index in results.values())
    if not total:
        raise SystemExit("no case was run")
    if not chosen.url and not chosen.engine and cases == CASES:
        (ROOT / "docs").mkdir(exist_ok=True)
        (ROOT / "docs" / "autobahn.md").write_text(document(results))
    print(f"{total - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
