//! Which addresses a webhook may lead to: an account names any URL, and the server must not fetch from its own network for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

pub const REFUSED: &str =
    "is not an address of the public internet; the operator can allow others with `myriad serve --private-webhooks`";

/// Resolves names to public addresses only. The connection is made to what this returns, so that a name cannot lead elsewhere
/// between the check and the connection.
pub struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let public: Vec<SocketAddr> = found.iter().copied().filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(format!("what {host} resolves to {REFUSED}").into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is one of the public internet (the special-purpose registries of IANA, RFC 6890 and its updates).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b) {
        (0, _) | (240.., _) => true,  // this network, reserved, broadcast
        (100, 64..=127) => true,      // shared by carriers
        (192, 0) => c == 0 || c == 2, // protocol assignments, documentation
        (192, 88) => c == 99,         // 6to4 relays
        (198, 18 | 19) => true,       // benchmarks
        (198, 51) => c == 100,        // documentation
        (203, 0) => c == 113,         // documentation
        _ => false,
    };
    !special && !address.is_loopback() && !address.is_private() && !address.is_link_local() && !address.is_multicast()
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    // An IPv4 address behind IPv6's notation, or behind a translator.
    if let Some(address) = address.to_ipv4_mapped() {
        return is_public_v4(address);
    }
    let [a, b, c, d, e, f, g, h] = address.segments();
    if [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [high, low] = [g.to_be_bytes(), h.to_be_bytes()];
        return is_public_v4(Ipv4Addr::new(high[0], high[1], low[0], low[1]));
    }
    // Global unicast is 2000::/3; loopback, unique local, link-local and multicast are all outside of it.
    let global = a & 0xe000 == 0x2000;
    let special = match (a, b) {
        (0x2001, ..0x0200) => true, // protocol assignments, tunnels
        (0x2001, 0x0db8) => true,   // documentation
        (0x2002, _) => true,        // 6to4, which leads to an IPv4 address
        (0x3fff, ..0x1000) => true, // documentation
        _ => false,
    };
    global && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_addresses() {
        let public = [
            "1.1.1.1",
            "93.184.215.14",
            "100.63.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ];
        let refused = [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd12:3456::1",
            "ff02::1",
            "fec0::1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "64:ff9b:1::1",
        ];
        for address in public {
            assert!(is_public(address.parse().unwrap()), "{address} is public");
        }
        for address in refused {
            assert!(!is_public(address.parse().unwrap()), "{address} is not public");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_refused() {
        let refused = PublicOnly.resolve("localhost".parse().unwrap()).await.err().unwrap().to_string();
        assert!(refused.contains("localhost") && refused.contains("--private-webhooks"), "{refused}");
    }
}
