//! How are listeners, and the whole node, taken out of service and back?

use super::{Change, Engine, EngineError};
use crate::compile;
use crate::drain;
use crate::state::{Admin, State};

impl Engine {
    /// Changes the state of a listener at run time.
    pub fn set_listener(&mut self, name: &str, admin: Admin) -> Result<Change, EngineError> {
        let Some(listener) = self.model.listeners.iter().find(|listener| listener.name == name) else {
            let names = self.model.listeners.iter().map(|listener| listener.name.as_str());
            let suggestion = crate::diagnostic::closest(name, names).map(str::to_owned);
            return Err(EngineError::UnknownListener { name: name.to_owned(), suggestion });
        };
        let mut state = self.state.clone();
        drain::set_listener(&mut state.overrides, listener, admin);
        self.set_overrides(state)
    }

    /// Changes the state of the node: of all listeners that are not in a stricter one.
    pub fn set_node(&mut self, admin: Admin) -> Result<Change, EngineError> {
        let mut state = self.state.clone();
        drain::set_node(&mut state.overrides, admin);
        self.set_overrides(state)
    }

    /// The state of the node.
    pub fn node(&self) -> Admin {
        drain::node(&self.state.overrides)
    }

    fn set_overrides(&mut self, state: State) -> Result<Change, EngineError> {
        let compiled =
            compile::compile(&self.model, &state.overrides, &self.down, &state.indices, &mut self.cache)?;
        let published = self.put_in_force(state, self.model.clone(), &compiled)?;
        Ok(self.changed(published))
    }
}
