"""VMs of an earlier daemon: none is forgotten while its QEMU runs, whatever became of its record."""

import subprocess
from pathlib import Path

import pytest

from tests.unit.control import ROOT, FakeDataplane, with_fake
from vm.qemu import VmPaths
from vswitch import errors
from vswitch.model import Nic, VmCreate, VmStop
from vswitch.service import Service


def test_a_vm_whose_record_is_damaged_is_shown_kept_and_can_be_stopped(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.touch()
    folder = tmp_path / "run" / "vms" / "web"

    async def before(service: Service, _fake: FakeDataplane) -> None:
        await service.create_vm(ROOT, VmCreate(name="web", kernel=str(kernel)))

    async def after(service: Service, _fake: FakeDataplane) -> None:
        info = service.vm("web")
        assert (info.state, info.pid) == ("unknown", qemu.pid)
        assert f"{folder}/vm.json cannot be read" in info.reason
        with pytest.raises(errors.ConflictError, match="VM web runs"):
            await service.delete_vm(ROOT, "web")
        with pytest.raises(errors.ConflictError, match="VM web runs already"):
            await service.start_vm("web")
        with pytest.raises(errors.ConflictError, match="cannot be read"):
            await service.nics.attach(ROOT, "web", Nic())
        with pytest.raises(errors.ConflictError, match="VMs run: web"):
            await service.stop(force=False)
        await service.stop_vm("web", VmStop(force=True))
        assert service.vm("web").state == "stopped"
        await service.delete_vm(ROOT, "web")
        assert not folder.exists()

    with_fake(tmp_path, before)
    folder.mkdir(parents=True)
    paths = VmPaths(folder)
    qemu = subprocess.Popen(["/bin/sh", "-c", "read never", str(paths.pidfile)], stdin=subprocess.PIPE)
    try:
        paths.pidfile.write_text(f"{qemu.pid}\n")
        paths.record.write_text("{nonsense")
        with_fake(tmp_path, after)
    finally:
        qemu.kill()
        qemu.wait()
