//! Where does a flaw of a route stand in the file, and what is to be written there instead?
//!
//! [`weir_http::routes`] says what is wrong; here it gets its place, the name that the file has for the field, and the rule with an
//! example.

use weir_http::routes::spec::{Action, Host, PathEdit};
use weir_http::routes::{Flaw, RouteError};
use weir_http::target::normalise;

use crate::diagnostic::{Diagnostic, Span};
use crate::schema::route::HttpRoute;

const LABELS_RULE: &str = "labels of letters, digits, '-', '_' and '~' with '.' between them";
const PATH_RULE: &str = "a path is visible ASCII that begins with '/', without '?' and '#', as \"/v1/items\"";
const NAME_RULE: &str = "use letters, digits and !#$%&'*+-.^_`|~ only, as";

/// The finding where the file says what is wrong.
pub(super) fn placed(route: &HttpRoute, error: &RouteError) -> Diagnostic {
    let value = error.value.trim_end_matches('\u{2026}');
    let of_field = || route.places.iter().filter(|(field, ..)| *field == &*error.field);
    // names of fields are compared without case, and kept in lower case
    let begins = |text: &str| text.get(..value.len()).is_some_and(|start| start.eq_ignore_ascii_case(value));
    let place = of_field()
        .find(|(_, text, _)| *text == value)
        .or_else(|| of_field().find(|(_, text, _)| text.eq_ignore_ascii_case(value)))
        .or_else(|| of_field().find(|(_, text, _)| begins(text)))
        .or_else(|| of_field().next())
        .map_or(route.span, |(.., span)| *span);
    let field = name_of(route, &error.field);
    let is_suffix = field == "host" && matches!(route.draft.host, Host::Suffix(_));
    let value = if is_suffix { format!("*{}", error.value) } else { error.value.to_string() };
    Diagnostic::error(place, format!("{field} \"{value}\" {}", error.flaw)).help(remedy(
        field,
        &value,
        &error.flaw,
    ))
}

/// What the file calls a field.
fn name_of<'a>(route: &HttpRoute, field: &'a str) -> &'a str {
    let is_prefix = |edit: &PathEdit| matches!(edit, PathEdit::ReplacePrefix(_));
    match field {
        "path" => route.paths.first().map_or("path", |(name, _)| name),
        "pools" => "split",
        "request.path" if is_prefix(&route.draft.request.path) => "rewrite.path_prefix",
        "request.path" => "rewrite.path",
        "request.host" => "rewrite.host",
        "redirect.path" => match &route.draft.action {
            Action::Redirect(redirect) if is_prefix(&redirect.path) => "redirect.path_prefix",
            _ => field,
        },
        other => other,
    }
}

/// What to write instead.
fn remedy(field: &str, value: &str, flaw: &Flaw) -> String {
    match flaw {
        Flaw::Host => host_remedy(field, value),
        Flaw::NoSlash => format!("write \"/{value}\": {PATH_RULE}"),
        Flaw::PathCharacter(character) => path_remedy(value, *character),
        Flaw::NotNormal => {
            let mut buffer = vec![0; value.len()];
            let normal = normalise(value.as_bytes(), &mut buffer).ok();
            match normal.and_then(|path| std::str::from_utf8(path).ok()).filter(|path| *path != value) {
                Some(path) => format!("write \"{path}\", the form that requests are compared in"),
                None => "write the path as requests have it once such parts are resolved".to_owned(),
            }
        }
        Flaw::Token if field == "method" => format!("{NAME_RULE} \"GET\""),
        Flaw::Token => format!("{NAME_RULE} X-Request-Id; the colon and the value are not part of it"),
        Flaw::OwnField => "leave it out: Weir writes it as the message and the connection need it \
                           (for Host there is rewrite.host)"
            .to_owned(),
        Flaw::Value => "leave out control characters; a field's value is one line".to_owned(),
        Flaw::Regex(_) => {
            "write an expression in the syntax of Rust's regex crate, which matches the whole value: \
                           \"/v[0-9]+/.*\"; \\\\. is a dot, and there are no look-arounds and back-references"
                .to_owned()
        }
        Flaw::Variable => "use one of these, or write text without %{".to_owned(),
        Flaw::Relative => {
            "write relative = true alone, or leave it out and name scheme, host or port".to_owned()
        }
        Flaw::Scheme => "write \"http\" or \"https\"".to_owned(),
        Flaw::Empty => format!("give {field} a value, or leave it out"),
        Flaw::TooLong(most) => format!("shorten it to at most {most} bytes"),
        Flaw::TooManyOf(most) => format!("use at most {most}, or make several routes"),
        Flaw::Labels(most) | Flaw::Depth(most) => format!("use at most {most}"),
        Flaw::Range(least, most) => format!("use {least} to {most}"),
        Flaw::Twice => "rename one of them".to_owned(),
        Flaw::NoPrefix => "match with path or path_prefix, or replace all of the path".to_owned(),
        _ => "docs/configuration.md says what a route may be".to_owned(),
    }
}

/// The rule, and before it the host without what does not belong to it, where that is all.
fn host_remedy(field: &str, value: &str) -> String {
    let rule = match field {
        "host" => format!(
            "{LABELS_RULE}, as \"shop.example.com\", \"*.example.com\" or \"[2001:db8::1]\"; the port is the listener's"
        ),
        "redirect.host" => format!("{LABELS_RULE}, as \"www.example.com\"; redirect.port is for the port"),
        _ => format!("{LABELS_RULE}, as \"app.internal\" or \"app.internal:8080\", or \"backend\""),
    };
    let rest = value.split_once("://").map_or(value, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or("");
    let rest = match rest.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => rest,
    };
    let rest = rest.trim_end_matches('.');
    let (wildcard, labels) = match rest.strip_prefix('*') {
        Some(below) => ("*.", below.strip_prefix('.').unwrap_or(below)),
        None => ("", rest),
    };
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_~".contains(&byte))
    };
    let better = format!("{wildcard}{labels}");
    let is_better =
        better != value && labels.split('.').all(is_label) && (field == "host" || wildcard.is_empty());
    if is_better { format!("write \"{better}\": {rule}") } else { format!("write {rule}") }
}

/// How the character is written.
fn path_remedy(value: &str, character: char) -> String {
    match character {
        '?' => {
            let path = value.split('?').next().unwrap_or("");
            format!(
                "write \"{path}\", and conditions on parameters as query = {{ name = \"value\" }}; {PATH_RULE}"
            )
        }
        '#' => format!("leave out the '#' and what follows, which clients keep to themselves; {PATH_RULE}"),
        other => {
            let mut bytes = [0; 4];
            let escaped: String =
                other.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")).collect();
            format!("write {escaped} for it, as clients do; {PATH_RULE}")
        }
    }
}

/// The place of a route's field, by what routes' own check calls it; the last one of that name.
pub(super) fn place_of(route: &HttpRoute, field: &str) -> Option<Span> {
    route.places.iter().rfind(|(name, ..)| *name == field).map(|(.., span)| *span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_name_what_can_be_written() {
        let of = |field: &str, value: &str, flaw: Flaw| remedy(field, value, &flaw);
        for (value, expected) in [
            ("shop.example.com:8080", "write \"shop.example.com\":"),
            ("http://shop.example.com/v1", "write \"shop.example.com\":"),
            ("shop.example.com.", "write \"shop.example.com\":"),
            ("*shop.example.com", "write \"*.shop.example.com\":"),
            ("shop.*.com", "write labels of letters"),
            ("shop example", "write labels of letters"),
            (":80", "write labels of letters"),
            ("[::1", "write labels of letters"),
        ] {
            let said = of("host", value, Flaw::Host);
            assert!(said.starts_with(expected), "{value}: {said}");
        }
        assert!(!of("rewrite.host", "*a.example", Flaw::Host).contains('*'));
        assert!(of("path", "v1", Flaw::NoSlash).starts_with("write \"/v1\":"));
        assert!(of("path", "/a b", Flaw::PathCharacter(' ')).starts_with("write %20 for it"));
        assert!(of("path", "/\u{e9}", Flaw::PathCharacter('\u{e9}')).starts_with("write %C3%A9 for it"));
        assert!(of("path", "/a?b=1", Flaw::PathCharacter('?')).starts_with("write \"/a\""));
        assert!(of("path", "/a/../b", Flaw::NotNormal).starts_with("write \"/b\""));
        assert!(of("path", "//../x", Flaw::NotNormal).starts_with("write the path as"));
        assert!(of("header", "X Y", Flaw::Token).contains("X-Request-Id"));
    }
}
