//! By how much estimates are off, by definition, in memory.

use super::State;
use crate::definition::Known;
use crate::estimate::Learned;

impl State {
    pub(super) fn learned(&self, known: &Known) -> Option<Learned> {
        self.learned.get(&known.definition_id()).copied()
    }

    /// Learns from what one call has used.
    pub(super) fn learn(&mut self, known: &Known, estimated: u64, used: u64) {
        let learned = Learned::after(self.learned(known), estimated, used);
        self.learned.insert(known.definition_id(), learned);
    }
}
