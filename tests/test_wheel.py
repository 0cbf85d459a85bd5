"""What lies beside a wheel: its digest, and a bill of materials that names every package."""

import hashlib
import json
import re
import shutil
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


def test_the_hashed_constraints_have_the_pins_that_ci_installs(tmp_path: Path) -> None:
    for folder in (".ci", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
    for name in (".ci/hash_constraints", "constraints.txt", "constraints_hashed.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    command = [sys.executable, str(tmp_path / ".ci" / "hash_constraints"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0

    # a pin that moved on, and a hash that was cut
    pins, hashed = tmp_path / "constraints.txt", tmp_path / "constraints_hashed.txt"
    pins.write_text(pins.read_text() + "a-new-one==1.0\n")
    lines = hashed.read_text().splitlines()
    hashed.write_text("\n".join([*lines[:-1], lines[-1][:-1]]) + "\n")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    cut = lines[-1].partition("==")[0]
    assert done.returncode == 1
    assert done.stdout == (
        f"constraints_hashed.txt differs from constraints.txt in a-new-one, {cut}: renew it\n"
    )
