"""Ranks and our own collectives, which exchange only nonzero parameters and count every byte.

Every function here says whether it is *Collective* (all ranks of the communicator call it) or *Not collective*.
"""

from fedmpi.comm.agree import agree, control_bytes
from fedmpi.comm.blobs import gather_blobs, same_number, same_text, scatter_blobs
from fedmpi.comm.coding import Wire
from fedmpi.comm.gather import gather_rows
from fedmpi.comm.link import plan_wire
from fedmpi.comm.parcels import Address, Parcel
from fedmpi.comm.ranks import SERVER, Ranks, check_one_world, check_same, find_nodes, host_names
from fedmpi.comm.reduce import Known, Reduce
from fedmpi.comm.scatter import Scatter
from fedmpi.comm.shared import SharedUpdates, SharedVector, plan_downlink, plan_uplink
from fedmpi.comm.traffic import Direction, Meter, Traffic
from fedmpi.comm.waiting import Patience

__all__ = [
    "SERVER",
    "Address",
    "Direction",
    "Known",
    "Meter",
    "Parcel",
    "Patience",
    "Ranks",
    "Reduce",
    "Scatter",
    "SharedUpdates",
    "SharedVector",
    "Traffic",
    "Wire",
    "agree",
    "check_one_world",
    "check_same",
    "control_bytes",
    "find_nodes",
    "gather_blobs",
    "gather_rows",
    "host_names",
    "plan_downlink",
    "plan_uplink",
    "plan_wire",
    "same_number",
    "same_text",
    "scatter_blobs",
]
