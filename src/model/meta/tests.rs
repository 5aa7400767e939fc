//! Commands in any order, and what they may not do to the state.

use proptest::prelude::*;

use super::*;
use crate::model::hash::KeyHash;
use crate::model::range::Point;

fn node(number: usize) -> Address {
    format!("node{number}").parse().unwrap()
}

/// A cluster of two nodes.
fn first() -> MetaState {
    let nodes = [node(1), node(2)];
    let incarnations = nodes.iter().cloned().map(|node| (node, 7)).collect();
    let view = View::first(&nodes, 1).unwrap();
    MetaState::first("c".to_owned(), 1, HashKey::PUBLISHED, view, &incarnations)
}

fn begin(id: u64, supersedes: Option<u64>) -> Command {
    let wanted = Wanted {
        nodes: vec![node(1), node(3)],
        repl_factor: 1,
        accept_loss: Vec::new(),
        limits: WantedLimits::default(),
    };
    Command::Begin { id, wanted, supersedes, members: BTreeMap::new(), at_ms: None }
}

/// A plan by which everything of the second shard goes to a new one, whose node is the given one, in two pieces.
fn plan(state: &MetaState, id: u64, new: usize) -> Command {
    let old = &state.view;
    let group = old.next_group;
    let leaves = old.shards.last().unwrap();
    let mut view = old.clone();
    view.shards.push(Shard { id: 99, group, replicas: vec![node(new)] });
    view.next_group += 1;
    let mut shards = old.shards.clone();
    let last = shards.len() - 1;
    shards[last] = Shard { id: leaves.id, group, replicas: vec![node(new)] };
    let mut pieces = Vec::new();
    for range in old.ranges(old.shards.len() - 1) {
        let end = range.to.as_ref().map_or(u128::MAX, |to| to.hash);
        let middle = Point::before_hash(range.from.hash / 2 + end / 2);
        let cut = [
            HashRange { from: range.from.clone(), to: Some(middle.clone()) },
            HashRange { from: middle, to: range.to.clone() },
        ];
        pieces.extend(cut.into_iter().map(|range| {
            let (from, to) = (leaves.group, group);
            Piece { range, from, to, pairs: 1, attempt: 0, handed_over: false }
        }));
    }
    let planned = Planned {
        targets: vec![1; shards.len()],
        shards,
        added: vec![group],
        pieces,
        keys: 2,
        moved: 2,
        minimum: 2,
        given_up: Vec::new(),
        copied: 0,
        hold_us: 0,
        left: Tally::default(),
    };
    let holders = [(group, [(node(new), 7)].into())].into();
    Command::Plan { id, epoch: old.epoch, planned: Box::new(planned), view: Box::new(view), holders }
}

fn piece(change: u64, index: u32, attempt: u32) -> PieceId {
    PieceId { change, index, attempt }
}

fn hand_over(piece: PieceId) -> Command {
    Command::HandOver { piece, copied: 5, hold_us: 10, left: Tally { created: 3, deleted: 2 } }
}

fn abort(piece: PieceId) -> Command {
    Command::Abort { piece, hold_us: 30 }
}

fn end(id: u64, end: End) -> Command {
    Command::End { id, end, holders: BTreeMap::new(), receipt: None }
}

fn finished() -> End {
    End::Finished("{}".to_owned())
}

fn planned_state() -> MetaState {
    let mut state = first();
    state.apply(begin(1, None)).unwrap();
    let plan = plan(&state, 1, 3);
    state.apply(plan).unwrap();
    state
}

fn attempts(state: &MetaState) -> Vec<(u32, bool)> {
    let pieces = state.change.iter().filter_map(|change| change.planned.as_ref());
    pieces.flat_map(|planned| &planned.pieces).map(|piece| (piece.attempt, piece.handed_over)).collect()
}

#[test]
fn commands_come_to_what_they_should_from_a_planned_change() {
    let void = Err(Void::Outdated);
    let table: [(&[Command], Result<(), Void>); 20] = [
        (&[begin(2, None)], Err(Void::Running(1))),
        (&[begin(2, Some(9))], Err(Void::Running(1))),
        (&[begin(2, Some(1))], Ok(())),
        (&[hand_over(piece(1, 0, 0))], Ok(())),
        (&[hand_over(piece(2, 0, 0))], void.clone()),
        (&[hand_over(piece(1, 2, 0))], void.clone()),
        (&[hand_over(piece(1, 0, 1))], void.clone()),
        (&[abort(piece(1, 0, 0)), hand_over(piece(1, 0, 0))], void.clone()),
        (&[abort(piece(1, 0, 0)), hand_over(piece(1, 0, 1))], Ok(())),
        (&[abort(piece(1, 0, 0)), abort(piece(1, 0, 0))], void.clone()),
        (&[hand_over(piece(1, 0, 0)), abort(piece(1, 0, 0))], void.clone()),
        (&[hand_over(piece(1, 0, 0)), hand_over(piece(1, 0, 0))], void.clone()),
        (&[end(1, End::Cancelled)], Ok(())),
        (&[end(2, End::Cancelled)], void.clone()),
        (&[hand_over(piece(1, 0, 0)), end(1, End::Cancelled)], void.clone()),
        (&[hand_over(piece(1, 0, 0)), end(1, End::Failed(String::new()))], void.clone()),
        (&[hand_over(piece(1, 0, 0)), end(1, End::Refused(String::new()))], void.clone()),
        (&[hand_over(piece(1, 0, 0)), end(1, finished())], void.clone()),
        (&[hand_over(piece(1, 0, 0)), hand_over(piece(1, 1, 0)), end(1, finished())], Ok(())),
        (&[end(1, End::Cancelled), hand_over(piece(1, 0, 0))], void.clone()),
    ];
    for (commands, wanted) in table {
        let mut state = planned_state();
        let (last, before) = commands.split_last().unwrap();
        for command in before {
            state.apply(command.clone()).unwrap();
        }
        let was = state.clone();
        assert_eq!(state.apply(last.clone()), wanted, "{commands:?}");
        assert_eq!(state.version, was.version + 1, "{commands:?}");
        if wanted.is_err() {
            assert_eq!(MetaState { version: was.version, ..state }, was, "{commands:?}");
        }
    }
}

#[test]
fn a_finished_change_has_the_planned_shards_and_forgets_who_left() {
    let mut state = planned_state();
    let epoch = state.view.epoch;
    state.apply(hand_over(piece(1, 0, 0))).unwrap();
    state.apply(abort(piece(1, 1, 0))).unwrap();
    state.apply(hand_over(piece(1, 1, 1))).unwrap();
    let planned = state.change.clone().unwrap().planned.unwrap();
    assert_eq!((planned.copied, planned.hold_us, state.view.epoch), (10, 30, epoch + 2));
    assert_eq!(planned.left, Tally { created: 6, deleted: 4 }, "of both");
    assert_eq!(state.open_pieces(), []);
    state.apply(end(1, finished())).unwrap();
    let ids: Vec<(u32, u64)> = state.view.shards.iter().map(|shard| (shard.id, shard.group)).collect();
    assert_eq!(ids, [(1, 1), (2, 3)]);
    assert_eq!((state.nodes(), state.holders.len()), (vec![node(1), node(3)], 2));
    assert_eq!(
        (state.former.iter().collect::<Vec<_>>(), state.result(1)),
        (vec![&node(2)], Some(&finished()))
    );
    // Whoever comes back is no former node any more.
    state.apply(begin(2, None)).unwrap();
    let plan = plan(&state, 2, 2);
    state.apply(plan).unwrap();
    assert_eq!(state.holder(4, &node(2)), Some(7));
    for index in 0..2 {
        state.apply(hand_over(piece(2, index, 0))).unwrap();
    }
    state.apply(end(2, finished())).unwrap();
    assert_eq!(state.former.iter().collect::<Vec<_>>(), [&node(3)]);
}

#[test]
fn superseding_keeps_new_shards_that_own_something() {
    for (handed_over, shards) in [(0, 2), (1, 3), (2, 3)] {
        let mut state = planned_state();
        for index in 0..handed_over {
            state.apply(hand_over(piece(1, index, 0))).unwrap();
        }
        state.apply(begin(2, Some(1))).unwrap();
        assert_eq!(state.view.shards.len(), shards, "{handed_over} handed over");
        assert_eq!(state.holders.len(), shards);
        assert_eq!(state.result(1), Some(&End::Superseded(2)));
        assert_eq!(state.change.as_ref().map(|change| change.id), Some(2));
        assert_eq!(state.former.len(), 3 - shards);
        assert_eq!(state.view.next_group, 4, "a group's number is never used again");
    }
}

#[test]
fn a_new_group_is_replaced_until_it_owns_something() {
    let replace = |group| Command::Replace { id: 1, group, holders: [(node(3), 8)].into() };
    let mut state = planned_state();
    assert_eq!(state.apply(replace(1)), Err(Void::Outdated), "it is not new");
    let epoch = state.view.epoch;
    state.apply(replace(3)).unwrap();
    assert_eq!((state.holder(4, &node(3)), state.holder(3, &node(3))), (Some(8), None));
    assert_eq!((state.view.epoch, attempts(&state)), (epoch + 1, vec![(1, false), (1, false)]));
    assert_eq!(state.view.next_group, 5, "a group's number is never used again");
    assert_eq!(state.apply(hand_over(piece(1, 0, 0))), Err(Void::Outdated));
    assert_eq!(state.apply(replace(3)), Err(Void::Outdated), "there is none any more");
    state.apply(hand_over(piece(1, 0, 1))).unwrap();
    assert_eq!(state.apply(replace(4)), Err(Void::Outdated), "it owns something");
    state.apply(hand_over(piece(1, 1, 1))).unwrap();
    state.apply(end(1, finished())).unwrap();
    assert_eq!(state.view.shards[1].group, 4);
}

#[test]
fn what_is_kept_of_the_past_is_bounded() {
    let mut state = first();
    for id in 1..200 {
        state.apply(begin(id, None)).unwrap();
        let new = 2 + usize::try_from(id).unwrap();
        let plan = plan(&state, id, new);
        state.apply(plan).unwrap();
        state.apply(hand_over(piece(id, 0, 0))).unwrap();
        state.apply(hand_over(piece(id, 1, 0))).unwrap();
        state.apply(end(id, finished())).unwrap();
    }
    assert_eq!((state.former.len(), state.results.len()), (KEPT_FORMER, KEPT_RESULTS));
    assert_eq!((state.former.back(), state.result(199).is_some()), (Some(&node(200)), true));
    assert_eq!((state.holders.len(), state.view.shards.len()), (2, 2));
}

/// What whoever has asked for a view change is answered.
fn answer(epoch: u64) -> String {
    format!(
        r#"{{"epoch":{epoch},"keys":2,"moved":2,"minimum":2,"copied":2,"created-meanwhile":0,"deleted-meanwhile":0,"hold-ms":1.5,"checksums-match":true,"shards":[]}}"#
    )
}

/// A whole view change whose commands are as these members take them.
fn change_view(state: &mut MetaState, id: u64, form: impl Fn(Command) -> Command) {
    let Command::Begin { wanted, supersedes, members, .. } = begin(id, None) else { unreachable!() };
    let at_ms = Some(1000 * id);
    state.apply(form(Command::Begin { id, wanted, supersedes, members, at_ms })).unwrap();
    let began_ms = state.change.as_ref().unwrap().began_ms;
    let plan = plan(state, id, 2 + usize::try_from(id).unwrap());
    for command in [plan, hand_over(piece(id, 0, 0)), hand_over(piece(id, 1, 0))] {
        state.apply(command).unwrap();
    }
    let text = answer(id);
    let receipt = Receipt { began_ms, ended_ms: Some(1000 * id + 7), ..Receipt::read(id, &text).unwrap() };
    let (end, holders, receipt) = (End::Finished(text), BTreeMap::new(), Some(receipt));
    let finish = Command::End { id, end, holders, receipt };
    assert_eq!(finish.needs(), format::RECEIPTS);
    state.apply(form(finish.clone())).unwrap();
    assert_eq!(state.apply(finish), Err(Void::Outdated), "asked twice, it is noted once");
}

#[test]
fn the_last_twenty_receipts_are_kept_with_their_times() {
    let mut state = first();
    for id in 1..=30 {
        change_view(&mut state, id, |command| command);
    }
    assert_eq!(state.receipts.len(), KEPT_RECEIPTS);
    let last = state.last_receipts();
    let epochs: Vec<u64> = last.iter().map(|receipt| receipt.epoch).collect();
    assert_eq!(epochs, (11..=30).rev().collect::<Vec<_>>(), "the newest first");
    assert!(last.iter().all(|receipt| receipt.took_ms() == Some(7)));
}

#[test]
fn of_a_view_change_that_ended_before_all_members_kept_receipts_the_result_is_shown() {
    let mut state = first();
    for id in 1..=3 {
        change_view(&mut state, id, |command| {
            let first = command.clone().in_first_form();
            assert_eq!(first.needs(), format::FIRST);
            if id < 3 { first } else { command }
        });
    }
    assert_eq!(state.receipts.len(), 1);
    let shown = state.last_receipts();
    let shown: Vec<_> = shown.iter().map(|receipt| (receipt.change, receipt.took_ms())).collect();
    assert_eq!(shown, [(3, Some(7)), (2, None), (1, None)]);
}

#[test]
fn a_start_takes_the_place_of_the_one_that_was_known_when_it_was_heard() {
    let mut state = first();
    let started = |number, was, start| Command::Started { node: node(number), was: Some(was), start };
    assert_eq!(state.started_command(&node(2), 7), None, "it is known");
    assert_eq!(state.started_command(&node(2), 8), Some(started(2, 7, 8)));
    assert_eq!(state.started_command(&node(3), 8), None, "it is no node of the view");
    state.apply(started(2, 7, 8)).unwrap();
    assert_eq!(state.apply(started(2, 7, 9)), Err(Void::Outdated), "heard before that");
    assert_eq!(state.directive(0).starts, [(node(1), 7), (node(2), 8)]);
    // A node that has left is named no more, and one that comes as it is heard.
    state.apply(begin(1, None)).unwrap();
    let plan = plan(&state, 1, 3);
    state.apply(plan).unwrap();
    let heard = state.started_command(&node(3), 5).unwrap();
    state.apply(heard).unwrap();
    state.apply(hand_over(piece(1, 0, 0))).unwrap();
    state.apply(hand_over(piece(1, 1, 0))).unwrap();
    state.apply(end(1, finished())).unwrap();
    assert_eq!(state.directive(0).starts, [(node(1), 7), (node(3), 5)]);
    assert_eq!(state.apply(started(2, 8, 9)), Err(Void::Outdated));
}

/// What is drawn for a step; what it names depends on the state.
fn command(state: &MetaState, (kind, a, b): (u8, u64, u32)) -> Command {
    let running = state.change.as_ref().map_or(0, |change| change.id);
    let id = if a.is_multiple_of(5) { a } else { running };
    let attempt = attempts(state).get((b % 3) as usize).map_or(0, |(attempt, _)| *attempt);
    let piece = piece(id, b % 3, attempt + u32::from(a.is_multiple_of(7)));
    match kind {
        0 | 1 => begin(a + 1, b.is_multiple_of(4).then_some(running)),
        2 | 3 => plan(state, id, 3 + (b % 4) as usize),
        4..=7 => hand_over(piece),
        8 | 9 => abort(piece),
        10 => Command::Replace {
            id,
            group: state.view.next_group - 1,
            holders: [(node(usize::try_from(a % 7).unwrap()), a)].into(),
        },
        11 => end(
            id,
            [End::Cancelled, End::Failed(String::new()), End::Refused(String::new())][b as usize % 3].clone(),
        ),
        12 => Command::Started { node: node((b % 8) as usize), was: (b % 2 == 0).then_some(a % 3), start: a },
        _ => end(id, finished()),
    }
}

fn owner_at(state: &MetaState, number: u8) -> u64 {
    let shard = state.view.owner(KeyHash(u128::from(number) << 120), b"k");
    state.view.shards[shard].group
}

proptest! {
    #[test]
    fn in_any_order_commands_keep_the_state_whole(
        steps in prop::collection::vec((0_u8..16, 0_u64..40, 0_u32..60), 1..80)
    ) {
        let mut state = first();
        for step in steps {
            let command = command(&state, step);
            let before = state.clone();
            let outcome = state.apply(command.clone());
            prop_assert_eq!(state.version, before.version + 1);
            prop_assert!(state.view.epoch >= before.view.epoch);
            if outcome.is_err() {
                prop_assert_eq!(&MetaState { version: before.version, ..state.clone() }, &before);
            }
            if state.view != before.view {
                prop_assert!(state.view.epoch > before.view.epoch, "{:?}", command);
            }
            // The space is owned once, by shards of the view.
            let mut at = Some(Point::start());
            for (range, owner) in state.view.ownership.rows() {
                prop_assert_eq!(Some(range.from), at);
                prop_assert!(owner < state.view.shards.len());
                at = range.to;
            }
            prop_assert_eq!(at, None);
            let groups: Vec<u64> = state.view.shards.iter().map(|shard| shard.group).collect();
            let mut sorted = groups.clone();
            sorted.sort_unstable();
            prop_assert_eq!(state.holders.keys().copied().collect::<Vec<_>>(), sorted);
            prop_assert!(groups.iter().all(|group| *group < state.view.next_group));
            // Only a hand-over moves anything, and only what its piece says.
            for number in 0..=255 {
                let (was, is) = (owner_at(&before, number), owner_at(&state, number));
                let is_hand_over = matches!(command, Command::HandOver { .. });
                prop_assert!(was == is || is_hand_over);
            }
            // A view change may be begun anew under its own id.
            let is_planned = state.change.as_ref().is_some_and(|change| change.planned.is_some());
            let same = is_planned && before.change.as_ref().map(|one| one.id) == state.change.as_ref().map(|one| one.id);
            if same && before.change.as_ref().is_some_and(|change| change.planned.is_some()) {
                let (was, is) = (attempts(&before), attempts(&state));
                prop_assert_eq!(was.len(), is.len());
                for ((old, was_over), (new, is_over)) in was.into_iter().zip(is) {
                    prop_assert!(new >= old && is_over >= was_over && (!was_over || new == old));
                }
            }
            prop_assert!(state.former.len() <= KEPT_FORMER && state.results.len() <= KEPT_RESULTS);
            let nodes = state.nodes();
            prop_assert!(state.starts.keys().all(|node| nodes.contains(node)));
            let is_over = state.change.is_none();
            prop_assert!(!is_over || state.former.iter().all(|node| !nodes.contains(node)));
        }
    }
}

#[test]
fn a_plan_fits_only_the_view_that_it_was_made_from() {
    let mut state = first();
    state.apply(begin(1, None)).unwrap();
    let plan = plan(&state, 1, 3);
    let survivors = vec![(1, node(1), 7)];
    let recovered = Command::Succeed { epoch: state.view.epoch, survivors, moved: Vec::new(), lost: None };
    state.apply(recovered.clone()).unwrap();
    assert_eq!(state.apply(plan), Err(Void::Outdated), "it would put the old group back");
    assert_eq!(state.apply(recovered), Err(Void::Outdated), "it was found out about another view");
}

#[test]
fn a_change_that_is_superseded_leaves_the_members_that_the_groups_have() {
    let members =
        |nodes: &[usize], start| Members { nodes: nodes.iter().map(|one| node(*one)).collect(), start };
    let supersede = |members| {
        let wanted = Wanted {
            nodes: vec![node(2)],
            repl_factor: 1,
            accept_loss: Vec::new(),
            limits: WantedLimits::default(),
        };
        Command::Begin { id: 2, wanted, supersedes: Some(1), members, at_ms: None }
    };
    let mut moved = planned_state();
    for index in 0..2 {
        moved.apply(hand_over(piece(1, index, 0))).unwrap();
    }
    // Those who say so.
    let mut state = moved.clone();
    let said = BTreeMap::from([(1, members(&[2, 3], None)), (3, members(&[9], Some(5)))]);
    state.apply(supersede(said)).unwrap();
    let held = |state: &MetaState, group| state.view.shards[state.index_of(group).unwrap()].replicas.clone();
    assert_eq!(held(&state, 1), [node(2), node(3)]);
    assert_eq!((held(&state, 3), state.holder(3, &node(9))), (vec![node(9)], Some(5)));
    // Of those who do not, all that may.
    let mut grown = moved.clone();
    moved.apply(supersede(BTreeMap::new())).unwrap();
    assert_eq!(held(&moved, 1), [node(1)], "view and plan name the same");
    grown.change.as_mut().unwrap().planned.as_mut().unwrap().shards[0].replicas = vec![node(4), node(1)];
    grown.apply(supersede(BTreeMap::new())).unwrap();
    assert_eq!(held(&grown, 1), [node(1), node(4)], "the one that the plan names may have been taken in");
    // A change that has moved replicas is not cancelled any more.
    let mut state = planned_state();
    state.change.as_mut().unwrap().planned.as_mut().unwrap().pieces.clear();
    assert_eq!(state.apply(end(1, End::Cancelled)), Err(Void::Outdated));
}

#[test]
fn a_plan_names_the_members_that_the_groups_have_and_uses_up_the_numbers_of_new_ones() {
    let mut state = first();
    state.apply(begin(1, None)).unwrap();
    let mut view = state.view.clone();
    view.shards[1] = Shard { id: 2, group: view.next_group, replicas: vec![node(3)] };
    view.next_group += 1;
    let plan = Plan {
        view,
        moves: Vec::new(),
        counts: vec![1, 1],
        targets: vec![1, 1],
        keys: 2,
        moved: 1,
        minimum: 1,
        copied: 0,
    };
    // The first group has moved to another node than the view says; of the second nothing is known.
    let members = BTreeMap::from([(1, Members { nodes: vec![node(5)], start: Some(8) })]);
    let starts = BTreeMap::from([(node(3), 7)]);
    let command = state.plan_command(1, &members, &plan, Vec::new(), Vec::new(), &starts);
    state.apply(command).unwrap();
    let shards: Vec<_> =
        state.view.shards.iter().map(|shard| (shard.group, shard.replicas.clone())).collect();
    assert_eq!(shards, [(1, vec![node(5)]), (2, vec![node(2)]), (3, vec![node(3)])]);
    assert_eq!((state.holder(1, &node(5)), state.holder(3, &node(3))), (Some(8), Some(7)));
    assert_eq!(state.view.next_group, 4, "a group's number is never used again");
}

#[test]
fn a_successor_has_a_number_of_its_own_and_nothing_of_what_its_group_had_begun_is_handed_over() {
    for (group, kept) in [(2, node(2)), (3, node(3))] {
        let mut state = planned_state();
        state.apply(hand_over(piece(1, 1, 0))).unwrap();
        let (epoch, new) = (state.view.epoch, state.view.next_group);
        let survivors = vec![(group, kept.clone(), 9)];
        state.apply(Command::Succeed { epoch, survivors, moved: Vec::new(), lost: None }).unwrap();
        assert_eq!((state.index_of(group), state.holder(new, &kept)), (None, Some(9)), "group {group}");
        assert!(state.view.next_group > new, "its number is used up: group {group}");
        assert_eq!(attempts(&state), [(1, false), (0, true)], "group {group}");
        assert_eq!(state.apply(hand_over(piece(1, 0, 0))), Err(Void::Outdated), "group {group}");
        state.apply(hand_over(piece(1, 0, 1))).unwrap();
    }
}

#[test]
fn the_limits_are_raised_by_a_change_that_finishes_and_by_no_other() {
    let wanted = WantedLimits { max_key_length: Some(2000), max_value_length: Some(5) };
    let raised = Limits { max_key_length: 2000, ..Limits::default() };
    let table: [(&[Command], Limits); 4] = [
        (&[hand_over(piece(1, 0, 0)), hand_over(piece(1, 1, 0)), end(1, finished())], raised),
        (&[hand_over(piece(1, 0, 0)), hand_over(piece(1, 1, 0))], Limits::default()),
        (&[end(1, End::Cancelled)], Limits::default()),
        (&[hand_over(piece(1, 0, 0)), begin(2, Some(1))], Limits::default()),
    ];
    for (commands, limits) in table {
        let (mut state, mut other) = (planned_state(), planned_state());
        state.change.as_mut().unwrap().wanted.limits = wanted;
        for command in commands {
            state.apply(command.clone()).unwrap();
            other.apply(command.clone()).unwrap();
        }
        assert_eq!(state.limits, limits, "{commands:?}");
        let is_newer = state.view.epoch > other.view.epoch;
        assert_eq!(is_newer, limits == raised, "whoever has not heard of it asks: {commands:?}");
    }
}

#[test]
fn a_generation_begins_where_a_counter_of_versions_may_be_lost() {
    let mut state = first();
    state.apply(begin(1, None)).unwrap();
    let Command::Plan { id, epoch, mut planned, view, holders } = plan(&state, 1, 3) else {
        unreachable!("it is one")
    };
    let lost = &state.view.shards[1];
    let given_up = GivenUp { id: lost.id, group: lost.group, replicas: lost.replicas.clone(), pairs: None };
    let mut other = state.clone();
    other
        .apply(Command::Plan {
            id,
            epoch,
            planned: planned.clone(),
            view: view.clone(),
            holders: holders.clone(),
        })
        .unwrap();
    assert_eq!(other.generation, 0, "all that moves brings its counter");
    planned.given_up.push(given_up);
    state.apply(Command::Plan { id, epoch, planned, view, holders }).unwrap();
    assert_eq!(state.generation, 1);
    let survivors = vec![(state.view.shards[0].group, node(1), 9)];
    let recovered = Command::Succeed { epoch: state.view.epoch, survivors, moved: Vec::new(), lost: None };
    state.apply(recovered.clone()).unwrap();
    assert_eq!(state.generation, 2);
    assert_eq!((state.apply(recovered), state.generation), (Err(Void::Outdated), 2));
    // A node of a version before does not know of it.
    let mut older = serde_json::to_value(&state).unwrap();
    older.as_object_mut().unwrap().remove("generation");
    assert_eq!(serde_json::from_value::<MetaState>(older).unwrap().generation, 0);
}
