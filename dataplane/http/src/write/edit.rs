//! What do configured edits make of fields?

use core::net::IpAddr;

use super::Sink;
use crate::head::Field;
use crate::name::{Known, is_token};
use crate::routes::edit::{Piece, Variable, pieces};
use crate::routes::spec::FieldEdit;

/// What `%{…}` in values stands for. Unknown names stay as they are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variables<'a> {
    /// `%{client}`.
    pub client: Option<IpAddr>,
    /// `%{host}`.
    pub host: &'a [u8],
    /// `%{path}`.
    pub path: &'a [u8],
    /// `%{route}`.
    pub route: &'a [u8],
    /// `%{backend_address}`.
    pub backend: &'a [u8],
    /// `%{request_id}`.
    pub request_id: &'a [u8],
}

/// Bytes of the longest address.
const ADDRESS: usize = 45;

impl Variables<'_> {
    /// Bytes that a value may take.
    fn bound(&self, template: &str) -> usize {
        let longest = [self.host, self.path, self.route, self.backend, self.request_id].map(<[u8]>::len);
        let longest = longest.into_iter().fold(ADDRESS, usize::max);
        template.len() + template.matches("%{").count() * longest
    }

    fn write(&self, template: &str, sink: &mut Sink<'_>) {
        for piece in pieces(template) {
            match piece {
                Piece::Text(text) => sink.put_value(text.as_bytes()),
                Piece::Variable(Variable::Client) => {
                    if let Some(client) = self.client {
                        sink.put_address(client);
                    }
                }
                Piece::Variable(Variable::Host) => sink.put_value(self.host),
                Piece::Variable(Variable::Path) => sink.put_value(self.path),
                Piece::Variable(Variable::Route) => sink.put_value(self.route),
                Piece::Variable(Variable::Backend) => sink.put_value(self.backend),
                Piece::Variable(Variable::RequestId) => sink.put_value(self.request_id),
            }
        }
    }
}

/// Edits of one message. Those of fields that frame a message, and of names that are no tokens, do nothing: the configuration refuses
/// them.
#[derive(Clone, Copy)]
pub(super) struct Edits<'a>(pub(super) &'a [FieldEdit]);

impl Edits<'_> {
    /// Whether fields of this name as they came don't go on.
    #[inline(always)]
    pub(super) fn removes(&self, field: &Field, head: &[u8]) -> bool {
        !self.0.is_empty() && replaces(self.0, field.name.of(head))
    }

    /// Whether the proxy's own field of this name isn't wanted.
    #[inline(always)]
    pub(super) fn replaces(&self, name: &str) -> bool {
        !self.0.is_empty() && replaces(self.0, name.as_bytes())
    }

    /// Writes the fields that edits set or add, and no later edit removes.
    pub(super) fn write(&self, variables: &Variables<'_>, sink: &mut Sink<'_>) {
        for (at, edit) in self.0.iter().enumerate() {
            let (FieldEdit::Set(name, value) | FieldEdit::Add(name, value)) = edit else { continue };
            let later = self.0.get(at + 1..).unwrap_or_default();
            if !is_token(name.as_bytes())
                || Known::of(name.as_bytes()).is_structural()
                || replaces(later, name.as_bytes())
            {
                continue;
            }
            sink.put(name.as_bytes());
            sink.put(b": ");
            variables.write(value, sink);
            sink.put(b"\r\n");
        }
    }

    /// Bytes that [`Self::write`] may take.
    pub(super) fn bound(&self, variables: &Variables<'_>) -> usize {
        let written = |edit: &FieldEdit| match edit {
            FieldEdit::Set(name, value) | FieldEdit::Add(name, value) => {
                name.len() + 4 + variables.bound(value)
            }
            FieldEdit::Remove(_) => 0,
        };
        self.0.iter().map(written).sum()
    }
}

#[cold]
fn replaces(edits: &[FieldEdit], name: &[u8]) -> bool {
    edits.iter().any(|edit| match edit {
        FieldEdit::Set(other, _) | FieldEdit::Remove(other) => other.as_bytes().eq_ignore_ascii_case(name),
        FieldEdit::Add(..) => false,
    })
}
