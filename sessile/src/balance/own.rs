//! What fails for want of something on this host, which says nothing about a server.

use std::io;

use rustix::io::Errno;

/// Whether a connection was not made for want of something here.
pub(super) fn is_ours(error: &io::Error) -> bool {
    const WANTING: [Errno; 9] = [
        Errno::ADDRNOTAVAIL,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::NETUNREACH,
        Errno::NETDOWN,
        // A packet filter on this host.
        Errno::PERM,
        Errno::ACCESS,
    ];
    Errno::from_io_error(error).is_some_and(|errno| WANTING.contains(&errno))
}
