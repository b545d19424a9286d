# SPDX-License-Identifier: BSD-3-Clause
"""What there is to say of an open device: as records for scripts, as tables for people."""

from __future__ import annotations

from typing import Any

from pyvfio.cli.tables import size, table
from pyvfio.errors import IRQError, RegionError
from pyvfio.pci.bars import BAR
from pyvfio.pci.device import PCIDevice
from pyvfio.pci.registers import decode_ids
from pyvfio.uapi.vfio import PCIIRQ, IRQFlags, PCIRegion, RegionFlags


def describe(dev: PCIDevice) -> dict[str, Any]:
    """A device as plain data: ids, regions, interrupts, capabilities, DMA."""
    return {
        "uri": dev.uri,
        "ids": decode_ids(dev.config),
        "resettable": dev.resettable,
        "regions": _regions(dev),
        "irqs": _irqs(dev),
        "capabilities": [
            {
                "offset": capability.offset,
                "id": capability.id,
                "name": capability.name,
                "version": capability.version,
                "extended": capability.extended,
            }
            for capability in dev.config.capabilities()
        ],
        "dma": {
            "page_size": dev.dma.page_size,
            "iova_ranges": dev.dma.iova_ranges,
            "max_maps": dev.base.container_io.max_maps,
        },
    }


def _regions(dev: PCIDevice) -> list[dict[str, Any]]:
    found = []
    for index in range(dev.base.info.num_regions):
        try:
            region = dev.bars.get(index) or dev.base.region(index)
        except RegionError:
            continue  # the kernel refuses the regions that a device does not have
        if not region.size:
            continue
        entry: dict[str, Any] = {
            "index": index,
            "name": PCIRegion(index).name if index < len(PCIRegion) else f"region {index}",
            "size": region.size,
            "flags": _flag_names(region.info.flags, RegionFlags),
            "mappable": [[area.offset, area.size] for area in region.mappable],
        }
        if isinstance(region, BAR):
            entry |= {"type": region.type.value, "prefetchable": region.prefetchable}
        found.append(entry)
    return found


def _irqs(dev: PCIDevice) -> list[dict[str, Any]]:
    found = []
    for index in range(dev.base.info.num_irqs):
        try:
            info = dev.base.irq_info(index)
        except IRQError:
            continue  # likewise
        if info.count:
            name = PCIIRQ(index).name if index < len(PCIIRQ) else f"irq {index}"
            flags = _flag_names(info.flags, IRQFlags)
            found.append({"index": index, "name": name, "vectors": info.count, "flags": flags})
    return found


def _flag_names(flags: int, kind: type[RegionFlags] | type[IRQFlags]) -> list[str]:
    return [str(flag.name).lower() for flag in kind if flags & flag]


def as_text(found: dict[str, Any]) -> str:
    """The records of :func:`describe` as tables."""
    ids = found["ids"]
    lines = [
        f"{found['uri']}",
        f"  {ids['vendor']:04x}:{ids['device']:04x}  {ids['vendor_name']} {ids['device_name']}"
        f"  (rev {ids['revision']:02x})",
        f"  subsystem {ids['subsystem_vendor']:04x}:{ids['subsystem']:04x},"
        f" class {ids['class']:06x} {ids['class_name']},"
        f" {'can' if found['resettable'] else 'cannot'} be reset",
        "",
    ]
    return (
        "\n".join(lines)
        + "\n"
        + "\n".join(
            [_region_table(found), _irq_table(found), _capability_table(found), _dma_text(found)]
        )
    )


def _region_table(found: dict[str, Any]) -> str:
    rows = []
    for region in found["regions"]:
        kind = region.get("type", "")
        if region.get("prefetchable"):
            kind += ", prefetchable"
        areas = ", ".join(f"{offset:#x}+{size(length)}" for offset, length in region["mappable"])
        rows.append([region["name"], size(region["size"]), kind, areas or "-"])
    return table("Regions", ["region", "size", "type", "can be mapped"], rows)


def _irq_table(found: dict[str, Any]) -> str:
    rows = [[irq["name"], str(irq["vectors"]), ", ".join(irq["flags"])] for irq in found["irqs"]]
    return table("Interrupts", ["index", "vectors", "flags"], rows)


def _capability_table(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{entry['offset']:#05x}",
            f"{entry['id']:#06x}" if entry["extended"] else f"{entry['id']:#04x}",
            entry["name"],
        ]
        for entry in found["capabilities"]
    ]
    return table("Capabilities", ["offset", "id", "name"], rows)


def _dma_text(found: dict[str, Any]) -> str:
    dma = found["dma"]
    ranges = ", ".join(f"{first:#x}-{last:#x}" for first, last in dma["iova_ranges"])
    return (
        f"DMA\n  addresses {ranges}, pages of {size(dma['page_size'])},"
        f" at most {dma['max_maps']} maps\n"
    )
