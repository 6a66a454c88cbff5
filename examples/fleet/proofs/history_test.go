package proofs

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
)

const processes = 8

// session is what the model knows of one grant: the refresh token that counts, the one before it, and whether it ended.
type session struct {
	current, previous string
	ended             bool
}

// call is one operation on a grant, as a client sees it. A refresh that was refused is two: one whose effect nobody knows,
// because it may have moved on and then found that the session had ended meanwhile, and one that saw the end.
type call struct {
	grant  string
	revoke bool
	saw    bool   // saw that the session has ended
	token  string // presented
}

type answer struct {
	next    string // the refresh token that came back
	unknown bool   // done or not
}

// unseen stands for a successor that was made and whose answer got lost: its holder learns it by repeating.
const unseen = "?"

// sessions is the specification of refresh and revocation, per grant (DESIGN 6.1 and 6.2). A refresh with the current token
// moves on; with the one before it, inside the grace window, it repeats the same successor; with any other it ends the
// grant. Nothing comes after the end.
var sessions = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		by := map[string]int{}
		for _, op := range history {
			g := op.Input.(call).grant
			i, ok := by[g]
			if !ok {
				i = len(parts)
				by[g], parts = i, append(parts, nil)
			}
			parts[i] = append(parts[i], op)
		}
		return parts
	},
	Init: func() []any { return []any{session{}} },
	Step: func(state, input, output any) []any {
		s, in, out := state.(session), input.(call), output.(answer)
		if s.current == "" { // the first that presents it brings the token that it was issued with
			s.current = firstOf(in.grant)
		}
		after := step(s, in)
		switch {
		case in.saw && s.ended:
			return []any{s}
		case in.saw:
			return nil
		case out.unknown:
			return []any{s, after}
		case in.revoke:
			return []any{after}
		case s.ended:
			return nil
		case in.token == s.current:
			after.current = out.next
			return []any{after}
		case in.token == s.previous && s.current == unseen:
			s.current = out.next
			return []any{s}
		case in.token == s.previous && out.next == s.current:
			return []any{s}
		}
		return nil
	},
	Equal: func(a, b any) bool { return a == b },
}

// step is what an operation does when it is done and nobody hears of it.
func step(s session, in call) session {
	switch {
	case in.revoke:
		s.ended = true
	case s.ended, in.token == s.previous:
	case in.token == s.current:
		s.previous, s.current = s.current, unseen
	default:
		s.ended = true
	}
	return s
}

var firsts sync.Map // grant → its first refresh token

func firstOf(grant string) string {
	v, _ := firsts.Load(grant)
	return v.(string)
}

// TestEightProcesses: on an engine with a server they are eight processes of the system's, which have nothing in common but that.
func TestEightProcesses(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		s := setup{Grace: time.Minute}
		fleet := e.fleet(t, processes, s)
		t.Run("nothing descends past a rule", func(t *testing.T) { nothingDescendsPastARule(t, fleet) })
		t.Run("uses are counted", func(t *testing.T) { usesAreCounted(t, fleet) })
		t.Run("histories are linearizable", func(t *testing.T) { historiesAreLinearizable(t, e, s, fleet) })
	})
}

// historiesAreLinearizable: eight processes refresh and revoke the same few sessions, with current, old and older tokens, one of
// them is killed in the middle and another takes its place, and what their callers saw can be put into one order. What a process
// was at when it died, and whatever else got no answer, may be done at any time after it was asked.
func historiesAreLinearizable(t *testing.T, e engine, s setup, fleet []*peer) {
	const calls = 40
	type shared struct {
		id     string
		mu     sync.Mutex
		tokens []string
	}
	var list []*shared
	for i := range 6 {
		issued := fleet[i].insist(t, question{Call: "issue", Subject: fmt.Sprint("linear-", i)})
		g := &shared{id: issued.Grant, tokens: []string{issued.Refresh}}
		firsts.Store(g.id, g.tokens[0])
		list = append(list, g)
	}
	var mu sync.Mutex // guards history
	var history []porcupine.Operation
	var wins, asked atomic.Int64
	began := time.Now()
	var wg sync.WaitGroup
	for p := range processes {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(p), 7))
			self := fleet[p]
			for range calls {
				if p != 0 && asked.Add(1) == processes*calls/2 && e.addr != "" {
					fleet[0].kill()
				}
				g := list[r.IntN(len(list))]
				in := call{grant: g.id}
				g.mu.Lock()
				in.token = g.tokens[len(g.tokens)-1]
				switch d := r.IntN(100); {
				case d < 30 && len(g.tokens) > 1:
					in.token = g.tokens[len(g.tokens)-2] // a repetition
				case d == 30 && len(g.tokens) > 3:
					in.token = g.tokens[r.IntN(len(g.tokens)-2)] // a thief
				case d == 31:
					in.revoke = true
				}
				g.mu.Unlock()
				var out answer
				saw, lost := false, false
				start := time.Since(began)
				var err error
				if in.revoke {
					_, err = self.ask(question{Call: "revoke grant", ID: g.id})
					out.unknown, lost = err != nil, err != nil
				} else {
					var issued reply
					issued, err = self.ask(question{Call: "refresh", Token: in.token})
					switch {
					case err == nil:
						out.next = issued.Refresh
						wins.Add(1)
					case errors.Is(err, apitoken.ErrInvalidGrant), errors.Is(err, apitoken.ErrRevoked):
						out.unknown, saw = true, true
					case errors.Is(err, apitoken.ErrUnavailable):
						out.unknown, lost = true, true
					default:
						t.Errorf("a refresh failed: %v", err)
						return
					}
				}
				end := int64(time.Since(began))
				if errors.Is(err, errKilled) {
					if self = e.spawn(t, s); self == nil {
						return
					}
				}
				if lost {
					end = int64(24 * time.Hour) // after everything else
				}
				if out.next != "" {
					g.mu.Lock()
					if !slices.Contains(g.tokens, out.next) {
						g.tokens = append(g.tokens, out.next)
					}
					g.mu.Unlock()
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: p, Input: in, Output: out, Call: int64(start), Return: end})
				if saw {
					history = append(history, porcupine.Operation{ClientId: p, Input: call{grant: g.id, saw: true}, Output: answer{}, Call: int64(start), Return: end})
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	require.Positive(t, wins.Load())
	require.True(t, e.addr == "" || fleet[0].cmd.ProcessState != nil, "one was killed")
	if verdict := porcupine.CheckOperationsTimeout(sessions.ToModel(), history, time.Minute); verdict != porcupine.Ok {
		t.Fatalf("%s: what eight processes answered about one session has no order in which it makes sense:\n%s", verdict, tell(history))
	}
}

// TestTheCheckerBites: a second successor of one token is found.
func TestTheCheckerBites(t *testing.T) {
	t.Parallel()
	firsts.Store("g", "t0")
	op := func(at int64, in call, out answer) porcupine.Operation {
		in.grant = "g"
		return porcupine.Operation{Input: in, Output: out, Call: at, Return: at + 5}
	}
	fork := []porcupine.Operation{op(0, call{token: "t0"}, answer{next: "t1"}), op(1, call{token: "t0"}, answer{next: "t2"})}
	require.False(t, porcupine.CheckOperations(sessions.ToModel(), fork))
	alive := []porcupine.Operation{op(0, call{revoke: true}, answer{}), op(10, call{token: "t0"}, answer{next: "t1"})}
	require.False(t, porcupine.CheckOperations(sessions.ToModel(), alive))
	early := []porcupine.Operation{op(0, call{token: "t0"}, answer{unknown: true}), op(0, call{saw: true}, answer{}), op(10, call{token: "t0"}, answer{next: "t1"})}
	require.False(t, porcupine.CheckOperations(sessions.ToModel(), early))
	good := []porcupine.Operation{op(0, call{token: "t0"}, answer{next: "t1"}), op(1, call{token: "t0"}, answer{next: "t1"}), op(10, call{revoke: true}, answer{}), op(20, call{token: "t1"}, answer{unknown: true}), op(20, call{saw: true}, answer{})}
	require.True(t, porcupine.CheckOperations(sessions.ToModel(), good))
}

// usesAreCounted: eight processes share an API key that is good for twelve uses.
func usesAreCounted(t *testing.T, fleet []*peer) {
	key := fleet[0].insist(t, question{Call: "make key", Subject: "robot", Uses: 12}).Access
	var taken, unknown atomic.Int64
	var wg sync.WaitGroup
	for _, p := range fleet {
		wg.Go(func() {
			for range 5 {
				switch _, err := p.ask(question{Call: "use", Token: key}); {
				case err == nil:
					taken.Add(1)
				case errors.Is(err, apitoken.ErrLimited):
				case errors.Is(err, apitoken.ErrUnavailable):
					unknown.Add(1)
				default:
					t.Errorf("a use failed: %v", err)
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, taken.Load(), int64(12), "never above the limit")
	require.GreaterOrEqual(t, taken.Load()+unknown.Load(), int64(12), "and exact below sixteen")
}

// nothingDescendsPastARule: eight processes refresh sessions of one subject while one of them revokes it. Whatever was handed out
// is refused everywhere afterwards, and a new login is good at once.
func nothingDescendsPastARule(t *testing.T, fleet []*peer) {
	for round := range 3 {
		subject := fmt.Sprint("user-", round)
		var mu sync.Mutex // guards all
		var all []string
		keep := func(access string) {
			mu.Lock()
			all = append(all, access)
			mu.Unlock()
		}
		var wg sync.WaitGroup
		var done atomic.Bool
		for p := range fleet {
			first := fleet[p].insist(t, question{Call: "issue", Subject: subject})
			keep(first.Access)
			wg.Go(func() {
				token := first.Refresh
				for n := 0; n < 50; n++ {
					next, err := fleet[(p+n)%len(fleet)].ask(question{Call: "refresh", Token: token})
					switch {
					case err == nil:
						keep(next.Access)
						token = next.Refresh
					case errors.Is(err, apitoken.ErrInvalidGrant):
						return
					}
					if done.Load() && n < 40 {
						n = 40
					}
				}
			})
		}
		fleet[round].insist(t, question{Call: "revoke subject", Subject: subject})
		done.Store(true)
		again := fleet[round].insist(t, question{Call: "issue", Subject: subject})
		wg.Wait()
		for _, p := range fleet {
			wg.Go(func() {
				p.insist(t, question{Call: "sync"})
				for _, access := range all {
					if err := p.verdict(access); !errors.Is(err, apitoken.ErrRevoked) {
						t.Errorf("it descends from before the revocation: %v", err)
					}
				}
				if err := p.verdict(again.Access); err != nil {
					t.Errorf("issued after the revocation was acknowledged: %v", err)
				}
			})
		}
		wg.Wait()
	}
}

// tell writes down the first session whose history makes no sense, with short names for its tokens.
func tell(history []porcupine.Operation) string {
	var b strings.Builder
	for _, part := range sessions.Partition(history) {
		if porcupine.CheckOperations(sessions.ToModel(), part) {
			continue
		}
		names := map[string]string{"": "-"}
		name := func(token string) string {
			if names[token] == "" {
				names[token] = fmt.Sprint("t", len(names)-1)
			}
			return names[token]
		}
		name(firstOf(part[0].Input.(call).grant))
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
		for _, op := range part {
			in, out := op.Input.(call), op.Output.(answer)
			fmt.Fprintf(&b, "%7d-%7d µs p%d %s revoke=%v saw=%v: next %s unknown=%v\n", op.Call/1000, op.Return/1000, op.ClientId, name(in.token), in.revoke, in.saw, name(out.next), out.unknown)
		}
		return b.String()
	}
	return ""
}
