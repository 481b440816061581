"""Write openapi.json and the API reference from the contract: `python -m gateway.documents`."""

import argparse
import json
from pathlib import Path

from gateway.documents.contract import read_contract
from gateway.documents.openapi import OpenApi
from gateway.documents.reference import reference


def main() -> None:
    """Write both documents into a folder: a checkout, or a place to compare with it."""
    parser = argparse.ArgumentParser(prog="python -m gateway.documents", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    contract = read_contract()
    openapi = OpenApi(contract).document()
    for path, text in {
        "gateway/static/openapi.json": json.dumps(openapi, indent=1, ensure_ascii=False) + "\n",
        "docs/api.md": reference(contract, openapi),
    }.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


if __name__ == "__main__":
    main()
