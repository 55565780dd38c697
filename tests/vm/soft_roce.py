"""Two RDMA ports in the guest, rxe0 and rxe1, with a wire between them: 192.168.77.1 and 192.168.77.2."""

from __future__ import annotations

# The rules make packets from one of this machine's addresses to the other take the wire: by itself the kernel hands
# them over inside.
WIRE = """
set -e
modprobe -a rdma_rxe sch_netem
ip link add up0 type veth peer name down0
ip addr add 192.168.77.1/24 dev up0; ip addr add 192.168.77.2/24 dev down0
ip link set up0 up; ip link set down0 up
for name in all up0 down0; do
    sysctl --quiet --write net.ipv4.conf.$name.{accept_local=1,rp_filter=0,arp_ignore=1,arp_announce=2}
done
ip rule add pref 100 iif up0 lookup local; ip rule add pref 101 iif down0 lookup local
ip rule add pref 200 lookup local
ip rule add pref 50 to 192.168.77.2 iif lo lookup 50; ip rule add pref 51 to 192.168.77.1 iif lo lookup 51
ip route add 192.168.77.2 dev up0 src 192.168.77.1 table 50
ip route add 192.168.77.1 dev down0 src 192.168.77.2 table 51
ip rule del pref 0
rdma link add rxe0 type rxe netdev up0; rdma link add rxe1 type rxe netdev down0
"""
UNWIRE = """
rdma link delete rxe0; rdma link delete rxe1; ip link delete up0
ip rule add pref 0 lookup local; for pref in 50 51 100 101 200; do ip rule del pref $pref; done; true
"""
