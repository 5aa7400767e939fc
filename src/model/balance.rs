//! Evening out weights along a line with the fewest new cuts.

use std::cmp::Reverse;

/// A piece of the line. It weighs `to - from` and can be cut at every whole number between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// What the piece is cut from, by the caller's number.
    pub(super) source: usize,
    /// Where it begins in the source.
    pub(super) from: u64,
    /// Where it ends in the source.
    pub(super) to: u64,
    /// Whose it is.
    pub(super) owner: usize,
    /// Whether it may be given away, whole or in part.
    pub(super) movable: bool,
}

impl Piece {
    fn weight(&self) -> u64 {
        self.to - self.from
    }
}

/// What owners have to give away and what they lack, by owner.
#[derive(Debug, Clone, Default)]
pub(super) struct Needs {
    /// How much an owner gives away.
    pub(super) surplus: Vec<u64>,
    /// How much an owner may take.
    pub(super) deficit: Vec<u64>,
}

/// One gift, found to be the best at some moment.
#[derive(Debug, Clone, Copy)]
struct Gift {
    piece: usize,
    to: usize,
    amount: u64,
    at_end: bool,
}

/// The order of gifts, least first: cuts that it adds to the line, then whole pieces before parts, then
/// what leaves most room for later gifts.
type Cost = (i64, bool, bool, u64);

/// Moves weight from owners with a surplus to owners with a deficit until one side is used up, each unit
/// at most once, and returns the pieces, in the order of the line.
///
/// A gift is chosen by how many changes of owner along the line it adds: one that closes a gap between two
/// pieces of the taker is best, then one next to the taker, then a shift of the cut between two neighbours
/// or a whole piece (the smallest first), and last a part of a piece far from the taker. That keeps the line
/// in few pieces, however often it is evened out. Ties go to the first piece, so the same input
/// gives the same result.
pub(super) fn even_out(mut pieces: Vec<Piece>, mut needs: Needs) -> Vec<Piece> {
    while let Some(gift) = best_gift(&pieces, &needs) {
        let piece = pieces[gift.piece];
        needs.surplus[piece.owner] -= gift.amount;
        needs.deficit[gift.to] -= gift.amount;
        let mut given = Piece { owner: gift.to, ..piece };
        if gift.amount == piece.weight() {
            pieces[gift.piece] = given;
            continue;
        }
        let mut kept = piece;
        if gift.at_end {
            (kept.to, given.from) = (piece.to - gift.amount, piece.to - gift.amount);
            pieces.splice(gift.piece..=gift.piece, [kept, given]);
        } else {
            (kept.from, given.to) = (piece.from + gift.amount, piece.from + gift.amount);
            pieces.splice(gift.piece..=gift.piece, [given, kept]);
        }
    }
    pieces
}

fn best_gift(pieces: &[Piece], needs: &Needs) -> Option<Gift> {
    // Far from any taker a gift goes to the one that lacks most.
    let (neediest, lack) = (0..).zip(&needs.deficit).max_by_key(|(owner, lack)| (**lack, Reverse(*owner)))?;
    if *lack == 0 {
        return None;
    }
    let mut best: Option<(Cost, Gift)> = None;
    for (index, piece) in pieces.iter().enumerate() {
        if !piece.movable || piece.weight() == 0 || needs.surplus[piece.owner] == 0 {
            continue;
        }
        let before = index.checked_sub(1).map(|before| pieces[before].owner);
        let after = pieces.get(index + 1).map(|after| after.owner);
        for to in [before, after, Some(neediest)].into_iter().flatten() {
            for at_end in [false, true] {
                let Some((cost, gift)) = weigh(pieces, needs, index, to, at_end) else { continue };
                if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                    best = Some((cost, gift));
                }
            }
        }
    }
    best.map(|(_, gift)| gift)
}

/// The gift of a piece, or of as much of it as fits at one of its ends, and what it costs.
fn weigh(pieces: &[Piece], needs: &Needs, index: usize, to: usize, at_end: bool) -> Option<(Cost, Gift)> {
    let piece = &pieces[index];
    let amount = piece.weight().min(needs.surplus[piece.owner]).min(needs.deficit[to]);
    if amount == 0 || piece.owner == to {
        return None;
    }
    let before = index.checked_sub(1).map(|before| pieces[before].owner);
    let after = pieces.get(index + 1).map(|after| after.owner);
    let changes =
        |neighbour: Option<usize>, owner: usize| i64::from(neighbour.is_some_and(|other| other != owner));
    let gift = Gift { piece: index, to, amount, at_end };
    if amount == piece.weight() {
        let added = changes(before, to) + changes(after, to)
            - changes(before, piece.owner)
            - changes(after, piece.owner);
        return Some(((added, false, false, amount), gift));
    }
    let (near, far) = if at_end { (after, before) } else { (before, after) };
    let rest = piece.weight() - amount;
    // The rest goes to the neighbour on the other side where it fits, and then no cut is left of the piece.
    let closes = far.is_some_and(|far| far != to && far != piece.owner && needs.deficit[far] >= rest)
        && needs.surplus[piece.owner] >= piece.weight();
    let added = 1 + changes(near, to) - changes(near, piece.owner) - i64::from(closes);
    // A part given far from the taker lies best beside a piece of somebody who gives, too: their next gift
    // is then beside the taker. And it is best cut from a large piece.
    let lonely = near.is_none_or(|near| near == piece.owner || needs.surplus[near] == 0);
    Some(((added, true, lonely, u64::MAX - piece.weight()), gift))
}
