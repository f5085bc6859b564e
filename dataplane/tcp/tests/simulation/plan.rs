//! What a seed decides: the links, the engines, and who says what to whom.

use weir_tcp::{Algorithm, ConnectionConfig, EngineConfig, KeepAlive, SynCookies};

use crate::link::{Quality, Random};

/// Who speaks when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Both at once.
    Together,
    /// The server once it has read the client's FIN.
    ClientFirst,
    /// The client once it has read the server's FIN.
    ServerFirst,
}

impl Order {
    /// Whether a side waits for the other's FIN.
    pub(crate) fn waits(self, side: usize) -> bool {
        matches!((self, side), (Self::ClientFirst, 1) | (Self::ServerFirst, 0))
    }
}

/// How a side leaves before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// With a RST.
    Abort,
    /// Without reading what comes.
    Leave,
}

/// A side's break in what it does, after so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) side: usize,
    pub(crate) after: u64,
    pub(crate) length_us: u64,
}

/// One connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversation {
    pub(crate) starts_us: u64,
    pub(crate) is_v4: bool,
    /// Bytes that the client and the server send.
    pub(crate) bytes: [u64; 2],
    pub(crate) order: Order,
    /// Who breaks it off, how, after how many bytes sent or received.
    pub(crate) broken: Option<(usize, Break, u64)>,
    /// A reader that stops.
    pub(crate) stall: Option<Pause>,
    /// A writer that stops.
    pub(crate) silence: Option<Pause>,
}

/// All that a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) quality: Quality,
    /// When nothing passes, µs from the start.
    pub(crate) blackouts: Vec<(u64, u64)>,
    /// From when on the links take only so long packets.
    pub(crate) mtu: Option<(u64, u16)>,
    /// The client's and the server's.
    pub(crate) configs: [ConnectionConfig; 2],
    pub(crate) engines: [EngineConfig; 2],
    /// Longest write.
    pub(crate) write: u64,
    /// A reader takes a piece within so many µs; 0: all at once.
    pub(crate) reads_every_us: u64,
    /// How often a full ring refuses a segment, in a million.
    pub(crate) refusals: u32,
    pub(crate) conversations: Vec<Conversation>,
    pub(crate) deadline_s: u64,
}

const ENGINE: EngineConfig = EngineConfig {
    connections: 64,
    time_waits: 16,
    pieces: 1 << 18,
    memory: 256 << 20,
    challenge_acks: 1_000,
};

/// A quiet link and default settings.
pub(crate) fn quiet(seed: u64) -> Plan {
    Plan {
        seed,
        quality: Quality { delay_us: 5_000, ..Quality::default() },
        blackouts: Vec::new(),
        mtu: None,
        configs: [ConnectionConfig::default(); 2],
        engines: [ENGINE; 2],
        write: 4_000,
        reads_every_us: 0,
        refusals: 0,
        conversations: vec![conversation([100_000, 300_000])],
        deadline_s: 600,
    }
}

/// Both sides send so much at once.
pub(crate) fn conversation(bytes: [u64; 2]) -> Conversation {
    Conversation {
        starts_us: 0,
        is_v4: true,
        bytes,
        order: Order::Together,
        broken: None,
        stall: None,
        silence: None,
    }
}

/// Draws a third of all values as 0: no trouble of that kind.
struct Draw(Random);

impl Draw {
    fn below(&mut self, most: u64) -> u64 {
        if self.0.below(3) == 0 { 0 } else { self.0.below(most) }
    }

    fn chance(&mut self, most: u64) -> u32 {
        self.below(most) as u32
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.0.below(count) == 0
    }

    fn up_to(&mut self, most: u64) -> u64 {
        self.0.below(most)
    }
}

/// One connection over a bad link.
pub(crate) fn bad_link(seed: u64) -> Plan {
    let mut draw = Draw(Random(seed));
    let quality = quality(&mut draw);
    let config = config(&mut draw);
    let bytes = [draw.below(300_000), draw.below(300_000)];
    Plan {
        quality,
        configs: [config; 2],
        write: 50 + draw.below(20_000),
        reads_every_us: draw.below(20_000),
        conversations: vec![Conversation { is_v4: draw.one_in(2), ..conversation(bytes) }],
        deadline_s: 3_600,
        ..quiet(seed)
    }
}

/// Everything at once.
pub(crate) fn anything(seed: u64) -> Plan {
    let mut draw = Draw(Random(seed ^ 0x5eed));
    let mut quality = quality(&mut draw);
    quality.mark = if draw.one_in(3) { draw.chance(100_000) } else { 0 };
    let blackouts = if draw.one_in(3) {
        let times = 1 + draw.up_to(3);
        (0..times)
            .map(|_| (draw.up_to(20_000_000), draw.up_to(8_000_000)))
            .map(|(at, us)| (at, at + us))
            .collect()
    } else {
        Vec::new()
    };
    let mtu = draw.one_in(4).then(|| (draw.up_to(3_000_000), 600 + draw.up_to(850) as u16));
    let configs = [config(&mut draw), config(&mut draw)];
    let engines = [engine(&mut draw), engine(&mut draw)];
    let count = if draw.one_in(2) { 1 } else { 1 + draw.up_to(8) };
    let most = 300_000 / count;
    let has_cookies = configs[1].syn_cookies == SynCookies::Always;
    let conversations: Vec<Conversation> = (0..count).map(|_| talk(&mut draw, most, has_cookies)).collect();
    // an IPv6 link takes 1,280 bytes at least (RFC 8200 §5)
    let mtu = mtu.map(|(at, mtu)| {
        let least = if conversations.iter().all(|talk| talk.is_v4) { 0 } else { 1_280 };
        (at, mtu.max(least))
    });
    Plan {
        seed,
        quality,
        blackouts,
        mtu,
        configs,
        engines,
        write: 50 + draw.below(20_000),
        reads_every_us: draw.below(20_000),
        refusals: if draw.one_in(3) { draw.chance(300_000) } else { 0 },
        conversations,
        deadline_s: 7_200,
    }
}

fn quality(draw: &mut Draw) -> Quality {
    Quality {
        loss: draw.chance(80_000),
        duplicate: draw.chance(50_000),
        corrupt: draw.chance(20_000),
        reorder: draw.chance(200_000),
        delay_us: 100 + draw.below(50_000),
        jitter_us: draw.below(10_000),
        rate: draw.below(20_000_000),
        queue: 3_000 + draw.below(300_000),
        mark: 0,
    }
}

fn config(draw: &mut Draw) -> ConnectionConfig {
    let cookies = match draw.up_to(4) {
        0 => SynCookies::Always,
        1 => SynCookies::Never,
        _ => SynCookies::Auto,
    };
    ConnectionConfig {
        no_delay: draw.chance(3) != 1,
        keep_alive: Some(KeepAlive { idle_s: 10 + draw.chance(20), interval_s: 10, probes: 9 }),
        algorithm: if draw.one_in(4) { Algorithm::NewReno } else { Algorithm::Cubic },
        fast_open: draw.one_in(3),
        slow_start_after_idle: draw.one_in(3),
        syn_cookies: cookies,
        timestamps: draw.chance(4) != 1,
        sack: draw.chance(4) != 1,
        window_scaling: draw.chance(4) != 1,
        ecn_request: draw.one_in(3),
        receive_buffer: 2_000 + draw.chance(1 << 20),
        send_buffer: 1_000 + draw.chance(1 << 19),
        mss: (draw.chance(2) == 1).then(|| 100 + draw.chance(1_300) as u16),
        data_retries: 100,
        syn_retries: 30,
        rto_max_ms: 10_000,
        ..ConnectionConfig::default()
    }
}

fn engine(draw: &mut Draw) -> EngineConfig {
    if draw.one_in(3) {
        EngineConfig { pieces: 24 + draw.up_to(100) as usize, memory: 4_000 + draw.up_to(100_000), ..ENGINE }
    } else {
        ENGINE
    }
}

fn talk(draw: &mut Draw, most: u64, has_cookies: bool) -> Conversation {
    let bytes = [draw.below(most), draw.below(most)];
    let pause = |draw: &mut Draw| {
        let side = draw.up_to(2) as usize;
        draw.one_in(5).then(|| Pause { side, after: draw.up_to(most / 2), length_us: draw.up_to(30_000_000) })
    };
    // a server that sent a cookie knows of its client only once that has said something
    let last = if has_cookies { 2 } else { 3 };
    Conversation {
        starts_us: draw.below(2_000_000),
        is_v4: draw.one_in(2),
        bytes,
        order: [Order::Together, Order::ClientFirst, Order::ServerFirst][draw.up_to(last) as usize],
        broken: draw.one_in(6).then(|| {
            let how = if draw.one_in(2) { Break::Abort } else { Break::Leave };
            (draw.up_to(2) as usize, how, draw.up_to(most))
        }),
        stall: pause(draw),
        silence: pause(draw),
    }
}

/// One connection with a stack that recovers slowly: fewer losses, fewer bytes.
pub(crate) fn with_other(seed: u64) -> Plan {
    let mut draw = Draw(Random(seed ^ 0x07e2));
    let quality = Quality {
        loss: draw.chance(20_000),
        duplicate: draw.chance(20_000),
        corrupt: draw.chance(10_000),
        reorder: draw.chance(100_000),
        delay_us: 100 + draw.below(30_000),
        jitter_us: draw.below(5_000),
        rate: 0,
        queue: 0,
        mark: 0,
    };
    // smoltcp 0.14 can lose its retransmission timer to a window that closes and opens: this one never closes
    let config = ConnectionConfig { rto_max_ms: 3_000, receive_buffer: 256 << 10, ..config(&mut draw) };
    let bytes = [draw.below(100_000), draw.below(100_000)];
    let order = [Order::Together, Order::ClientFirst, Order::ServerFirst][draw.up_to(3) as usize];
    let has_cookies = config.syn_cookies == SynCookies::Always;
    let order = if has_cookies && order == Order::ServerFirst { Order::Together } else { order };
    Plan {
        quality,
        configs: [config; 2],
        write: 50 + draw.below(20_000),
        conversations: vec![Conversation { is_v4: draw.one_in(2), order, ..conversation(bytes) }],
        deadline_s: 3_600,
        ..quiet(seed)
    }
}
