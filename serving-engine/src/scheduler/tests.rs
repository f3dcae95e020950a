use super::*;
use crate::random::uniform;

const PATIENCE: u64 = 10;

/// A row's attention never matters, and 1,000 bytes are a row.
const FLAT: Costs = Costs { bytes_per_row: 1_000, positions_per_row: u64::MAX };

fn weight(weight: u32) -> NonZeroU32 {
    NonZeroU32::new(weight).unwrap()
}

fn candidate(index: usize, lane: u64, arrival: u64, pending: usize) -> Candidate {
    Candidate { index, lane: Lane(lane), arrival, computed: 0, pending, waited: 0 }
}

fn budget(rows: usize) -> Budget {
    Budget { rows, patience_steps: PATIENCE }
}

#[test]
fn table_of_shares() {
    let mut lanes = Lanes::default();
    lanes.charge(Lane(1), weight(1), 100 * ROW);
    lanes.charge(Lane(2), weight(1), 10 * ROW);
    let a = candidate(0, 1, 0, 50);
    let b = candidate(1, 2, 1, 50);
    let decoding = candidate(2, 1, 2, 1);
    let aged = |c: Candidate| Candidate { waited: PATIENCE + 1, ..c };
    type Case<'a> = (&'a str, &'a [Candidate], usize, &'a [(usize, usize)]);
    let cases: [Case<'_>; 9] = [
        ("a decoding sequence goes before any prompt", &[a, decoding], 8, &[(2, 1), (0, 7)]),
        ("the least served lane goes first", &[a, b], 60, &[(1, 50), (0, 10)]),
        ("within a lane, first come first served", &[candidate(0, 1, 5, 9), candidate(1, 1, 4, 9)], 9, &[(1, 9)]),
        ("the budget is not exceeded", &[a, b, decoding], 1, &[(2, 1)]),
        ("nothing to do is nothing", &[], 8, &[]),
        ("a prompt that has waited too long gets its share", &[aged(a), decoding], 1, &[(0, 1)]),
        ("which is a quarter, and what is left goes as ever", &[aged(a), b], 40, &[(0, 10), (1, 30)]),
        ("it may get more where nobody else wants it", &[aged(a), decoding], 40, &[(0, 39), (2, 1)]),
        ("of several the one that waited longest", &[aged(a), Candidate { waited: 99, ..b }], 4, &[(1, 4)]),
    ];
    for (rule, candidates, rows, expected) in cases {
        assert_eq!(share_rows(candidates, &lanes, FLAT, budget(rows)), expected, "{rule}");
    }
}

#[test]
fn chunks_far_into_a_text_are_shorter_and_never_nothing() {
    let costs = Costs { bytes_per_row: 1, positions_per_row: 1_000 };
    let at = |computed| {
        let long = Candidate { computed, ..candidate(0, 1, 0, 100_000) };
        share_rows(&[long], &Lanes::default(), costs, budget(256))
    };
    assert_eq!([at(0), at(1_000), at(3_000), at(10_000_000)], [256, 128, 64, 1].map(|rows| vec![(0, rows)]));
    let (near, far) = (candidate(0, 1, 0, 1), Candidate { computed: 400_000, ..candidate(1, 1, 1, 1) });
    let shares = share_rows(&[near, far, candidate(2, 1, 2, 500)], &Lanes::default(), costs, budget(256));
    assert_eq!(shares, [(0, 1), (1, 1)], "decoding goes on, and no prompt makes a step longer that is long already");
}

#[test]
fn adapters_cost_what_reading_them_takes() {
    let shape = ModelShape {
        architecture: "LlamaForCausalLM".into(),
        vocabulary: 1_000,
        hidden: 64,
        intermediate: 128,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        context: 512,
    };
    let bytes = 2 * shape.weights() as u64;
    let costs = Costs::new(&shape, bytes);
    assert_eq!(costs.adapter(bytes as usize), ROWS_PER_READ * ROW, "as much as the base");
    assert_eq!(costs.adapter(bytes as usize / 32), ROW / 2);
    // 2 x 64 x 64 + 2 x 64 x 32 + 3 x 64 x 128 weights against 2 x 64 products a position.
    assert_eq!(costs.rows(288, 3), 6 * ROW);
}

#[test]
fn a_lane_that_comes_back_has_no_claim_on_the_past_and_keeps_its_debt() {
    let mut lanes = Lanes::default();
    lanes.charge(Lane(1), weight(1), 1_000);
    lanes.charge(Lane(2), weight(1), 900);
    lanes.keep([Lane(1), Lane(2), Lane(3)].into_iter());
    assert_eq!(lanes.served(Lane(3)), 900);
    lanes.charge(Lane(1), weight(4), 400);
    lanes.keep([Lane(2)].into_iter());
    lanes.keep([Lane(1), Lane(2)].into_iter());
    assert_eq!(lanes.served(Lane(1)), 1_100, "by its weight, and not forgotten by leaving");
    lanes.keep(std::iter::empty());
    lanes.keep([Lane(1)].into_iter());
    assert_eq!(lanes.served(Lane(1)), 0, "nobody was there to be held back");
}

#[test]
fn lanes_that_left_are_bounded() {
    let mut lanes = Lanes::default();
    for lane in 1..10_000 {
        lanes.charge(Lane(lane), weight(1), lane);
    }
    lanes.keep([Lane(0)].into_iter());
    lanes.charge(Lane(0), weight(1), 0);
    assert!(lanes.served.len() <= LANES_REMEMBERED + 1);
}

#[test]
fn table_of_places() {
    let holding = |lane, of, running| Holding { lane: Lane(lane), weight: weight(of), running };
    let mut lanes = Lanes::default();
    lanes.charge(Lane(1), weight(1), 100 * ROW);
    lanes.charge(Lane(2), weight(1), 50 * ROW);
    let cases: [(&str, &[Holding], usize, Option<u64>); 7] = [
        ("who has all gives one to who has none", &[holding(1, 1, 8), holding(9, 1, 0)], 8, Some(1)),
        ("until shares are equal", &[holding(1, 1, 5), holding(9, 1, 3)], 8, Some(1)),
        ("and not beyond", &[holding(1, 1, 4), holding(9, 1, 4)], 8, None),
        ("shares are by weight", &[holding(1, 3, 6), holding(9, 1, 2)], 8, None),
        ("the one furthest above its share gives", &[holding(1, 1, 3), holding(2, 1, 5), holding(9, 1, 0)], 8, Some(2)),
        (
            "with more lanes than places they take turns",
            &[holding(1, 1, 1), holding(2, 1, 1), holding(9, 1, 0)],
            2,
            Some(1),
        ),
        ("nobody takes its own lane's place", &[holding(9, 1, 2)], 2, None),
    ];
    for (rule, holdings, places, expected) in cases {
        assert_eq!(yields(holdings, Lane(9), places, &lanes), expected.map(Lane), "{rule}");
    }
    lanes.charge(Lane(9), weight(1), 200 * ROW);
    let turns = [holding(1, 1, 1), holding(2, 1, 1), holding(9, 1, 0)];
    assert_eq!(yields(&turns, Lane(9), 2, &lanes), None, "who was served more waits");
}

/// Sequences with prompts and answers that arrive at random, planned step by step.
struct Simulation {
    seed: u64,
    draws: u32,
    lanes: Lanes,
    costs: Costs,
    running: Vec<(Candidate, usize)>,
    arrivals: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let costs = Costs { bytes_per_row: 1_000, positions_per_row: 500 };
        Self { seed, draws: 0, lanes: Lanes::default(), costs, running: Vec::new(), arrivals: 0 }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.draws += 1;
        ((uniform(self.seed, 0, self.draws) * bound as f32) as usize).min(bound - 1)
    }

    fn arrive(&mut self, lane: u64, prompt: usize, answer: usize) {
        self.arrivals += 1;
        self.running.push((candidate(0, lane, self.arrivals, prompt), answer));
    }

    /// Plans and computes a step; returns each lane's cost.
    fn step(&mut self, rows: usize, weight_of: impl Fn(Lane) -> NonZeroU32) -> Vec<(Lane, u64)> {
        self.lanes.keep(self.running.iter().map(|(c, _)| c.lane));
        for (index, (candidate, _)) in self.running.iter_mut().enumerate() {
            candidate.index = index;
        }
        let candidates: Vec<Candidate> = self.running.iter().map(|(c, _)| *c).collect();
        let shares = share_rows(&candidates, &self.lanes, self.costs, budget(rows));
        self.check(&candidates, &shares, rows);
        self.running.iter_mut().for_each(|(c, _)| c.waited += 1);
        let mut costs = Vec::new();
        for (index, rows) in shares {
            let (candidate, answer) = &mut self.running[index];
            let cost = self.costs.rows(candidate.computed, rows);
            self.lanes.charge(candidate.lane, weight_of(candidate.lane), cost);
            costs.push((candidate.lane, cost));
            (candidate.computed, candidate.pending, candidate.waited) =
                (candidate.computed + rows, candidate.pending - rows, 0);
            if candidate.pending == 0 && *answer > 0 {
                (candidate.pending, *answer) = (1, *answer - 1);
            }
        }
        self.running.retain(|(c, _)| c.pending > 0);
        costs
    }

    /// What must hold of every step.
    fn check(&self, candidates: &[Candidate], shares: &[(usize, usize)], rows: usize) {
        let seed = self.seed;
        let total: usize = shares.iter().map(|(_, rows)| rows).sum();
        assert!(total <= rows, "seed {seed}: {total} rows of {rows}");
        assert!(candidates.is_empty() || total > 0, "seed {seed}: a step that computes nothing");
        let indices: HashSet<usize> = shares.iter().map(|(index, _)| *index).collect();
        assert_eq!(indices.len(), shares.len(), "seed {seed}: a sequence is in a step twice");
        assert!(shares.iter().all(|&(index, rows)| rows > 0 && rows <= candidates[index].pending), "seed {seed}");
        let of_prompts = shares.iter().filter(|&&(index, rows)| candidates[index].pending > 1 && rows > 1);
        let cost: u64 = of_prompts.map(|&(index, rows)| self.costs.rows(candidates[index].computed, rows)).sum();
        assert!(cost <= rows as u64 * ROW, "seed {seed}: prompts make a step too long");
        let waited = candidates.iter().map(|c| c.waited).max().unwrap_or(0);
        let bound = PATIENCE + candidates.len() as u64;
        assert!(waited <= bound, "seed {seed}: {waited} steps without a row, the bound is {bound}");
    }
}

#[test]
fn any_arrivals_stay_within_the_budget_and_starve_nobody() {
    for seed in 0..40 {
        let mut simulation = Simulation::new(seed);
        let rows = [1, 3, 16, 64][seed as usize % 4];
        for _ in 0..600 {
            if simulation.running.len() < 24 && simulation.below(3) > 0 {
                let (lane, prompt, answer) = (simulation.below(5), 1 + simulation.below(300), simulation.below(60));
                simulation.arrive(lane as u64, prompt, answer);
            }
            simulation.step(rows, |lane| weight(1 + lane.0 as u32));
        }
    }
}

#[test]
fn busy_lanes_get_what_their_weights_say() {
    for seed in 0..20 {
        let mut simulation = Simulation::new(seed);
        let of = 1 + simulation.below(8) as u32;
        let mut served = [0u64; 2];
        for _ in 0..4_000 {
            for lane in 0..2 {
                while simulation.running.iter().filter(|(c, _)| c.lane == Lane(lane)).count() < 4 {
                    let prompt = 20 + simulation.below(400);
                    simulation.arrive(lane, prompt, 0);
                }
            }
            for (lane, cost) in simulation.step(64, |lane| weight(if lane == Lane(1) { of } else { 1 })) {
                served[lane.0 as usize] += cost;
            }
        }
        let ratio = served[1] as f64 / served[0] as f64 / f64::from(of);
        assert!((0.9..=1.1).contains(&ratio), "seed {seed}: weight {of}, {ratio:.3} of the share");
    }
}
