"""What lies beside a wheel: its digest, and a bill of materials that names every package."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

from tests.conftest import ROOT


def test_a_wheel_is_described_by_what_it_was_tested_with(tmp_path: Path) -> None:
    wheel = tmp_path / "hfstack-1.2.3-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    command = [sys.executable, str(ROOT / ".ci" / "describe_wheel"), str(wheel)]
    subprocess.run(command, check=True, env={})
    path = tmp_path / f"{wheel.name}.cdx.json"
    first = path.read_bytes()
    bill = json.loads(first)

    digest = hashlib.sha256(b"a wheel").hexdigest()
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", bill["serialNumber"])
    top = bill["metadata"]["component"]
    assert top["purl"] == "pkg:pypi/hfstack@1.2.3"
    assert top["hashes"] == [{"alg": "SHA-256", "content": digest}]

    # each pin once, under the name that the index has
    pins = [
        Requirement(line.partition("#")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.partition("#")[0].strip()
    ]
    listed = {(one["name"], one["version"]) for one in bill["components"]}
    expected = {(re.sub(r"[-_.]+", "-", pin.name).lower(), str(pin.specifier)[2:]) for pin in pins}
    assert listed == expected and len(bill["components"]) == len(expected) > 100
    references = {one["bom-ref"] for one in bill["components"]}
    assert set(bill["dependencies"][0]["dependsOn"]) == references

    sums = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert sums == [
        f"{digest}  {wheel.name}",
        f"{hashlib.sha256(first).hexdigest()}  {path.name}",
    ]
    subprocess.run(command, check=True, env={})
    assert path.read_bytes() == first, "the same wheel gives the same bytes"
