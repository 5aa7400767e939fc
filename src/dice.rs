//! The one place that draws random numbers: ids of starts, replicas, clusters, changes and requests, and whom to ask.

use std::cell::RefCell;

use rand::distr::{Distribution, StandardUniform};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

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

thread_local! {
    static DICE: RefCell<StdRng> = RefCell::new(of_system());
}

/// Dice that the system has thrown first. rand's own ask the C library for the system call by its name, which a static program cannot, and then want `/dev/urandom`, which is not
/// there in an empty root.
fn of_system() -> StdRng {
    let mut seed = [0; 32];
    getrandom::getrandom(&mut seed).expect("the system has random numbers");
    StdRng::from_seed(seed)
}

#[cfg(not(test))]
fn with<T>(draw: impl FnOnce(&mut dyn RngCore) -> T) -> T {
    DICE.with_borrow_mut(|dice| draw(dice))
}

#[cfg(test)]
fn with<T>(draw: impl FnOnce(&mut dyn RngCore) -> T) -> T {
    seeded::DICE.with_borrow_mut(|dice| match dice {
        Some(dice) => draw(dice),
        None => DICE.with_borrow_mut(|dice| draw(dice)),
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
