//! `linux.netDevices`: devices of the host's network that move into the container's, with their addresses.
//! <https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config-linux.md#network-devices>
//!
//! The parent moves them (it has the right in both networks), the container's first process gives them back the addresses
//! they lost by it and brings them up. Spoken with the kernel in rtnetlink(7). When the container's network goes, the
//! kernel gives a physical device back to the host; one that exists by itself, as a veth, goes with it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::exit;
use crate::oci::{Linux, NamespaceKind};

/// A device to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    name: String,
    inside: String,
    index: u32,
    addresses: Vec<Address>,
}

/// An address as RTM_NEWADDR takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    /// IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST: type and value.
    attributes: Vec<(u16, Vec<u8>)>,
}

// linux/rtnetlink.h, if_link.h, if_addr.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE_NEW: u16 = 0x600;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_PERMANENT: u8 = 0x80;
const IFF_UP: u32 = 1;

impl Device {
    /// The devices of a configuration, looked up. Errors: usage (2) for a name that can be none and without a network
    /// namespace of the container's own; not found (3) for a device that is not there.
    pub fn plan(linux: &Linux) -> Result<Vec<Device>> {
        if linux.net_devices.is_empty() {
            return Ok(Vec::new());
        }
        if linux.namespace(NamespaceKind::Network).is_none() {
            return Err(exit::usage("linux.netDevices: there is no network namespace in linux.namespaces"));
        }
        let socket = socket()?;
        let mut devices: Vec<Device> = Vec::new();
        for (name, asked) in &linux.net_devices {
            let inside = asked.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| name.clone());
            check_name(name)?;
            check_name(&inside)?;
            if devices.iter().any(|device| device.inside == inside) {
                return Err(exit::usage(format!("linux.netDevices: two are to be '{inside}'")));
            }
            let index = name_to_index(&socket, name)
                .map_err(|_| exit::not_found(format!("linux.netDevices: {name}: no such device")))?;
            let addresses = addresses(&socket, index).with_context(|| format!("linux.netDevices: {name}"))?;
            devices.push(Device { name: name.clone(), inside, index, addresses });
        }
        Ok(devices)
    }

    /// Moves it to another network. By the parent.
    pub fn give(&self, network: BorrowedFd<'_>) -> Result<()> {
        let mut body = link(self.index, 0);
        attribute(&mut body, IFLA_NET_NS_FD, &network.as_raw_fd().to_ne_bytes());
        attribute(&mut body, IFLA_IFNAME, &[self.inside.as_bytes(), b"\0"].concat());
        call(&socket()?, RTM_NEWLINK, NLM_F_ACK, &body).map(drop).map_err(|error| match error.downcast_ref::<Errno>() {
            Some(&Errno::EXIST) => anyhow!("linux.netDevices: {}: the container has a '{}'", self.name, self.inside),
            _ => error.context(format!("linux.netDevices: {}: move it", self.name)),
        })
    }

    /// Gives it its addresses back and brings it up. In the container's network.
    pub fn receive(&self) -> Result<()> {
        let name = || format!("linux.netDevices: {}", self.inside);
        let socket = socket()?;
        let index = name_to_index(&socket, &self.inside).with_context(name)?;
        for address in &self.addresses {
            let mut body = vec![address.family, address.prefix, IFA_F_PERMANENT, 0];
            body.extend(index.to_ne_bytes());
            address.attributes.iter().for_each(|(kind, value)| attribute(&mut body, *kind, value));
            call(&socket, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE_NEW, &body)
                .with_context(|| format!("{}: address", name()))?;
        }
        call(&socket, RTM_NEWLINK, NLM_F_ACK, &link(index, IFF_UP)).with_context(|| format!("{}: up", name()))?;
        Ok(())
    }
}

/// What the kernel takes as a device's name; a template (`eth%d`) is not done.
fn check_name(name: &str) -> Result<()> {
    let fine = !name.is_empty() && name.len() < 16 && name != "." && name != "..";
    if fine && !name.contains(|c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c)) {
        return Ok(());
    }
    Err(exit::usage(format!(
        "linux.netDevices: {name:?} is no device's name: at most 15 bytes, no '/', ':', '%' or space"
    )))
}

fn socket() -> Result<OwnedFd> {
    // Protocol 0: NETLINK_ROUTE.
    socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .context("linux.netDevices: netlink")
}

/// struct ifinfomsg: a device, and flags to set.
fn link(index: u32, flags: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), flags.to_ne_bytes()].concat()
}

/// Attributes begin at multiples of four.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (value.len() + 4) as u16;
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The global, permanent addresses of a device; those of its link it makes itself.
fn addresses(socket: &OwnedFd, index: u32) -> Result<Vec<Address>> {
    let all = call(socket, RTM_GETADDR, NLM_F_DUMP, &[0; 8])?;
    let of_ours = all.iter().filter_map(|body| {
        let (head, rest) = body.split_at_checked(8)?;
        let [family, prefix, flags, scope, at @ ..] = head else { return None };
        if at != index.to_ne_bytes() || *scope != 0 || flags & IFA_F_PERMANENT == 0 {
            return None;
        }
        let mut attributes = attributes(rest);
        attributes.retain(|(kind, _)| [IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST].contains(kind));
        Some(Address { family: *family, prefix: *prefix, attributes })
    });
    Ok(of_ours.collect())
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    while let [a, b, c, d, ..] = bytes {
        let (length, kind) = (usize::from(u16::from_ne_bytes([*a, *b])), u16::from_ne_bytes([*c, *d]));
        let Some(value) = bytes.get(4..length) else { break };
        all.push((kind, value.to_vec()));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// Asks the kernel and gives the bodies of its answers, up to the end of a dump or the word that it is done.
fn call(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<Vec<u8>>> {
    const HEAD: usize = 16;
    let mut message = ((HEAD + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // A number and a port: one question at a time on a socket that is nobody else's needs neither.
    message.extend([0; 8]);
    message.extend(body);
    send(socket.as_fd(), &message, SendFlags::empty()).context("netlink")?;
    let mut answers = Vec::new();
    loop {
        let mut bytes = vec![0u8; 64 * 1024];
        let length = match recv(socket.as_fd(), &mut bytes[..], RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            received => received.context("netlink")?.0,
        };
        let mut rest = bytes.get(..length).unwrap_or_default();
        while let [a, b, c, d, e, f, ..] = rest {
            let size = u32::from_ne_bytes([*a, *b, *c, *d]) as usize;
            let Some(body) = rest.get(HEAD..size) else { bail!("netlink: an answer that is cut off") };
            match u16::from_ne_bytes([*e, *f]) {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => {
                    let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                    return if code == 0 { Ok(answers) } else { Err(Errno::from_raw_os_error(-code).into()) };
                }
                _ => answers.push(body.to_vec()),
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_takes() {
        for good in ["eth0", "a", "fifteen-bytes-x", "ü"] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", "sixteen-bytes-xx", "a/b", "a:b", "a b", "eth%d", "a\n"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn attributes_come_as_they_went() {
        let mut body = Vec::new();
        attribute(&mut body, 3, b"abcde");
        attribute(&mut body, 28, &[1, 2, 3, 4]);
        assert_eq!(body.len(), 20);
        assert_eq!(attributes(&body), [(3, b"abcde".to_vec()), (28, vec![1, 2, 3, 4])]);
        assert_eq!(attributes(&[200, 0, 1, 0, 5]), []);
    }
}
