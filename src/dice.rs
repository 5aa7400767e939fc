//! The one place that draws random numbers: ids of starts, replicas, clusters, changes and requests, and whom to ask.

use rand::distr::{Distribution, StandardUniform};
use rand::{Rng, RngCore};

/// Draws a number.
pub fn draw<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    with(|dice| dice.random())
}

/// Draws an id: neither 0, which means that there is none, nor the highest number, which is nobody's.
pub fn id() -> u64 {
    with(|dice| dice.random_range(1..u64::MAX))
}

/// Draws an index of a list that is not empty.
pub fn index(length: usize) -> usize {
    with(|dice| dice.random_range(0..length))
}

#[cfg(not(test))]
fn with<T>(draw: impl FnOnce(&mut dyn RngCore) -> T) -> T {
    draw(&mut rand::rng())
}

#[cfg(test)]
fn with<T>(draw: impl FnOnce(&mut dyn RngCore) -> T) -> T {
    seeded::DICE.with_borrow_mut(|dice| match dice {
        Some(dice) => draw(dice),
        None => draw(&mut rand::rng()),
    })
}

/// Dice of a simulation: the same numbers for the same seed.
#[cfg(test)]
pub(crate) mod seeded {
    use std::cell::RefCell;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    thread_local! {
        pub(super) static DICE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    }

    /// From now on this thread draws from a seed; from the system's dice again where there is none.
    pub(crate) fn set(seed: Option<u64>) {
        DICE.set(seed.map(StdRng::seed_from_u64));
    }
}
