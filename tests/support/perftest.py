"""What perftest 4.5 prints, in its own formats (perftest_parameters.h and the strings of its program)."""

from __future__ import annotations

from collections.abc import Sequence

_RULE = "-" * 87
_HEADER = (
    "#bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   "
    "99% percentile[usec]   99.9% percentile[usec] "
)
NO_DEVICE = """ Did not detect devices
 If device exists, check if driver is up
 Unable to find the Infiniband/RoCE device
"""


def output(microseconds: Sequence[float]) -> str:
    """Of `ib_write_lat -U` with these latencies."""
    ordered = sorted(microseconds)
    count, middle = len(ordered), ordered[len(ordered) // 2]
    listed = "".join(f"{number}, {value:g}\n" for number, value in enumerate(microseconds, 1))
    return f"""{_RULE}
                    RDMA_Write Latency Test
 Dual-port       : OFF\t\tDevice         : mlx5_0
 Number of qps   : 1\t\tTransport type : IB
 Connection type : RC\t\tUsing SRQ      : OFF
 PCIe relax order: ON
 TX depth        : 1
 Mtu             : 1024[B]
 Link type       : Ethernet
 GID index       : 3
 Max inline data : 220[B]
 rdma_cm QPs\t : OFF
 Data ex. method : Ethernet
{_RULE}
 local address: LID 0000 QPN 0x0087 PSN 0x9b1a5d RKey 0x180f00 VAddr 0x005599d9c3a000
 GID: 00:00:00:00:00:00:00:00:00:00:255:255:10:00:00:01
 remote address: LID 0000 QPN 0x0088 PSN 0xbc2a6 RKey 0x180e00 VAddr 0x0055b5a6d24000
 GID: 00:00:00:00:00:00:00:00:00:00:255:255:10:00:00:02
{_RULE}
 {_HEADER}
#, usec
{listed}{_RULE}
 {_HEADER}
 8       {count + 1}          {ordered[0]:<7.2f}        {ordered[-1]:<7.2f}      {middle:<7.2f} \
 \t       {middle:<7.2f}     \t0.00\t\t{ordered[-1]:<7.2f} \t\t{ordered[-1]:<7.2f}
{_RULE}
"""
