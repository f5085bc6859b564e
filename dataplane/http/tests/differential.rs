//! Does httparse read what we accept as we do? It accepts more: bare LF, for example.
#![cfg(test)]

use weir_http::chunked::{Decoder, Kind};
use weir_http::fuzz;
use weir_http::head::{Limits, Method, Progress, Request, Response, Version};

/// Inputs made of seeds, the same in every run.
fn inputs(seeds: &[Vec<u8>], skip: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as usize % below.max(1)
    };
    seeds.iter().flat_map(move |seed| {
        let inputs: Vec<Vec<u8>> = (0..5_000)
            .map(|_| {
                let mut input = seed[skip..].to_vec();
                for _ in 0..random(4) {
                    let at = random(input.len());
                    match random(3) {
                        0 => input[at] = random(256) as u8,
                        1 => input.insert(at, b"\r\n\t :,;/%0aA\x0b\x80"[random(14)]),
                        _ => drop(input.remove(at)),
                    }
                }
                input
            })
            .collect();
        inputs
    })
}

const LIMITS: Limits = Limits { head_bytes: 65_535, headers: 64, target_bytes: 60_000 };

fn version(version: Version) -> Option<u8> {
    Some(u8::from(version == Version::Http11))
}

#[test]
fn requests_read_the_same() {
    let (mut ours, mut theirs) = (0, 0);
    for input in inputs(&fuzz::request_seeds(), 2) {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut other = httparse::Request::new(&mut fields);
        let end = other.parse(&input);
        theirs += usize::from(matches!(end, Ok(httparse::Status::Complete(_))));
        let mut request = Request::default();
        if request.parse(&input, &LIMITS) != Ok(Progress::Complete) {
            continue;
        }
        // a higher minor version is 1.1 here, and nothing there
        if matches!(
            input.get(request.target.whole.start as usize + usize::from(request.target.whole.len) + 8),
            Some(b'2'..=b'9')
        ) {
            continue;
        }
        ours += 1;
        let text = input.escape_ascii();
        assert_eq!(end, Ok(httparse::Status::Complete(request.len)), "{text}");
        let word = |span: weir_http::head::Span| std::str::from_utf8(span.of(&input)).unwrap();
        assert_eq!(other.method, Some(word(request.method_name)), "{text}");
        assert_eq!(other.path, Some(word(request.target.whole)), "{text}");
        assert_eq!(other.version, version(request.version), "{text}");
        assert_eq!(other.headers.len(), request.fields.len(), "{text}");
        for (field, header) in request.fields.iter().zip(other.headers.iter()) {
            assert_eq!((word(field.name), field.value.of(&input)), (header.name, header.value), "{text}");
        }
    }
    assert!(ours > 10_000 && theirs > ours, "{ours} and {theirs} were accepted");
}

#[test]
fn responses_read_the_same() {
    let mut ours = 0;
    for input in inputs(&fuzz::response_seeds(), 2) {
        let mut response = Response::default();
        if response.parse(&input, &LIMITS, Method::Get) != Ok(Progress::Complete) {
            continue;
        }
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut other = httparse::Response::new(&mut fields);
        ours += 1;
        let text = input.escape_ascii();
        assert_eq!(other.parse(&input), Ok(httparse::Status::Complete(response.len)), "{text}");
        assert_eq!((other.code, other.version), (Some(response.status), version(response.version)), "{text}");
        assert_eq!(other.headers.len(), response.fields.len(), "{text}");
        for (field, header) in response.fields.iter().zip(other.headers.iter()) {
            assert_eq!(
                (field.name.of(&input), field.value.of(&input)),
                (header.name.as_bytes(), header.value),
                "{text}"
            );
        }
    }
    assert!(ours > 10_000, "{ours} were accepted");
}

#[test]
fn sizes_of_chunks_read_the_same() {
    let mut ours = 0;
    for input in inputs(&fuzz::chunked_seeds(), 8) {
        // only the first line
        let mut decoder = Decoder::new();
        let (mut used, mut rest) = (0, &input[..]);
        while let Ok(Some(run)) = decoder.next(rest) {
            if run.kind == Kind::Data || decoder.data_left() > 0 || decoder.is_done() {
                if run.kind != Kind::Data {
                    used += run.len;
                }
                break;
            }
            used += run.len;
            rest = &rest[run.len..];
        }
        let size = decoder.data_left();
        if size == 0 {
            continue;
        }
        ours += 1;
        let other = httparse::parse_chunk_size(&input);
        assert_eq!(other, Ok(httparse::Status::Complete((used, size))), "{}", input.escape_ascii());
    }
    assert!(ours > 1_000, "{ours} were accepted");
}
