use std::collections::VecDeque;

use super::Delivery;

/// The chunks that the stream has not taken, in order. One of them needs no memory of its own.
#[derive(Debug, Default)]
pub(super) struct Queue {
    front: Option<Delivery>,
    /// Empty without a front.
    rest: VecDeque<Delivery>,
}

impl Queue {
    pub(super) fn push_back(&mut self, delivery: Delivery) {
        match &mut self.front {
            front @ None => *front = Some(delivery),
            Some(_) => self.rest.push_back(delivery),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Delivery> {
        let front = self.front.take()?;
        self.front = self.rest.pop_front();
        Some(front)
    }

    pub(super) fn front(&self) -> Option<&Delivery> {
        self.front.as_ref()
    }

    pub(super) fn back(&self) -> Option<&Delivery> {
        self.rest.back().or(self.front.as_ref())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Delivery> {
        self.front.iter().chain(&self.rest)
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.front.is_some()) + self.rest.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.front.is_none()
    }
}
