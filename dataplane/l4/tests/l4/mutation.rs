//! Does any frame, however broken, make the engine panic?
//!
//! Frames are made from good ones by seeded mutation; WEIR_SEED repeats a run.

use weir_l4::fuzz;

use crate::packets::{ACK, FIN, Packet, RST, SYN, TCP, UDP, framed, icmp_error, ones_sum};

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit.max(1)
    }
}

/// Good frames of all modes that [`fuzz::services`] has, both ways, with errors about them and pieces of them.
fn corpus() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (vip, client, router, server, snat) in [
        ("198.18.0.100", "198.18.2.1:4000", "198.18.9.9", "198.18.1.1", "198.18.0.2"),
        ("198.18.0.100", "198.18.2.2:4001", "198.18.9.9", "198.18.1.2", "198.18.0.2"),
        ("2001:db8::100", "[2001:db8:2::1]:4000", "2001:db8:9::9", "2001:db8:1::1", "2001:db8::2"),
        ("2001:db8::100", "[2001:db8:2::1]:4001", "2001:db8:9::9", "2001:db8:1::2", "2001:db8::2"),
    ] {
        let at =
            |address: &str, port: u16| std::net::SocketAddr::new(address.parse().unwrap(), port).to_string();
        for protocol in [TCP, UDP] {
            for port in (1_000..1_005).chain([2_500]) {
                let request = Packet::new(protocol, client, &at(vip, port));
                for flags in [SYN, ACK, FIN | ACK, RST] {
                    frames.push(Packet { mss: Some(1_460), ..request.with(flags) }.frame());
                }
                frames.push(Packet { payload: vec![1; 1_460], ..request.clone() }.frame());
                frames.push(Packet { ttl: 1, ..request.clone() }.frame());
                let reply = Packet::new(protocol, &at(server, port), client);
                frames.extend([reply.with(SYN | ACK).frame(), reply.frame()]);
                for source in 60_000..60_004 {
                    frames.push(Packet::new(protocol, &at(server, port), &at(snat, source)).frame());
                }
                let long = Packet { payload: vec![3; 120], ..request.clone() };
                frames.extend(long.fragments(48));
                frames.extend(Packet { payload: vec![3; 120], ..reply.clone() }.fragments(48));
                let kinds =
                    if vip.contains(':') { [(2, 0), (1, 4), (3, 0)] } else { [(3, 4), (3, 1), (11, 0)] };
                for (kind, code) in kinds {
                    let quote = request.answer(ACK).datagram();
                    frames.push(framed(&icmp_error(router, vip, kind, code, 1_300, &quote)));
                    let quote = reply.answer(ACK).datagram();
                    let to = client.parse::<std::net::SocketAddr>().unwrap().ip().to_string();
                    frames.push(framed(&icmp_error(router, &to, kind, code, 1_300, &quote)));
                }
            }
        }
    }
    frames
}

fn mutate(random: &mut Random, frame: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(frame.len());
        match random.below(9) {
            0 => frame.truncate(at),
            1 => frame.extend(std::iter::repeat_n(0xa5, random.below(40))),
            2 => {
                let from = random.below(other.len());
                frame.truncate(at);
                frame.extend(&other[from..]);
            }
            3 if !frame.is_empty() => frame[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            4 if !frame.is_empty() => drop(frame.remove(at)),
            5 => frame.insert(at, random.next() as u8),
            _ if !frame.is_empty() => frame[at] ^= 1 << random.below(8),
            _ => {}
        }
    }
    // half of them get past the header's checksum
    if random.below(2) == 0 && frame.len() >= 34 && frame[12..14] == [8, 0] && frame[14] == 0x45 {
        frame[24..26].fill(0);
        let sum = !ones_sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

#[test]
fn no_sequence_of_broken_frames_makes_it_panic() {
    let seed = std::env::var("WEIR_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed_0001);
    println!("seed {seed}: repeat with WEIR_SEED={seed}");
    let mut random = Random(seed);
    let corpus = corpus();
    let mut frames = 0;
    for _ in 0..400 {
        let mut input = Vec::new();
        // the corpus holds a flow's frames side by side: a sequence stays near one place, so that its frames meet
        let near = random.below(corpus.len());
        for _ in 0..50 {
            let at = if random.below(3) > 0 { near + random.below(20) } else { random.below(corpus.len()) };
            let mut frame = corpus[at % corpus.len()].clone();
            if random.below(2) > 0 {
                let other = random.below(corpus.len());
                mutate(&mut random, &mut frame, &corpus[other]);
            }
            frame.truncate(1_999);
            input.extend((frame.len() as u16).to_be_bytes());
            input.extend(&frame);
            frames += 1;
        }
        fuzz::l4(&input);
    }
    assert!(frames >= 10_000);
}

#[test]
fn arbitrary_bytes_are_no_trouble_either() {
    let seed = std::env::var("WEIR_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed_0002);
    println!("seed {seed}: repeat with WEIR_SEED={seed}");
    let mut random = Random(seed);
    for length in 0..200 {
        let bytes: Vec<u8> = (0..length * 7).map(|_| random.next() as u8).collect();
        fuzz::l4(&bytes);
    }
}
