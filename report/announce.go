package report

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

// Owner is who has to do something about what ends.
type Owner struct {
	Name  string            // the subject, or the client of secrets
	Items []apitoken.Expiry // the first to end first
}

// ByOwner sorts what Service.Expiring lists by its owners, whose names are in order. It holds the whole list: for owners by the
// million, read Service.Expiring itself.
func ByOwner(list iter.Seq2[apitoken.Expiry, error]) ([]Owner, error) {
	items := map[string][]apitoken.Expiry{}
	for x, err := range list {
		if err != nil {
			return nil, err
		}
		items[x.Owner] = append(items[x.Owner], x)
	}
	out := make([]Owner, 0, len(items))
	for _, name := range slices.Sorted(maps.Keys(items)) {
		slices.SortFunc(items[name], func(a, b apitoken.Expiry) int { return a.Ends.Compare(b.Ends) })
		out = append(out, Owner{name, items[name]})
	}
	return out, nil
}

// Announcement says that something ends soon.
type Announcement struct {
	ID string // the same if it should ever come twice, and of no other one
	apitoken.Expiry
	Distance time.Duration // the configured one that was crossed
	Left     time.Duration // from now to the end
}

// Event is the announcement as an audit event, for Service.Alert or an Auditor of the host's own. Its Reason is
// "expires", and Extra says what ends, when, and how many whole hours are left.
func (a Announcement) Event() apitoken.Event {
	e := apitoken.Event{ID: a.ID, Type: event.Alert, OK: true, Reason: "expires", Subject: a.Owner, Client: a.Client, Extra: map[string]string{
		"kind": a.Kind, "ends": a.Ends.UTC().Format(time.RFC3339), "hours_left": strconv.Itoa(int(a.Left / time.Hour))}}
	switch a.Kind {
	case "apikey":
		e.TokenID = a.Expiry.ID
	case "grant":
		e.Grant = a.Expiry.ID
	case "secret":
		e.Subject = ""
	}
	return e
}

// AnnouncerConfig configures Announce.
type AnnouncerConfig struct {
	// Tell hands an announcement on: writes a mail, a ticket, an event. Required. Its context lasts 45 s; after an error it is
	// tried again at the next round, in whichever process.
	Tell func(ctx context.Context, a Announcement) error
	// At are the distances before the end; nil: 30 days, 7 days, 1 day. What was made closer to its end than a distance
	// is not announced at it, and what has crossed several since the last round is announced at the nearest only.
	At     []time.Duration
	Grants bool          // sessions too. There are many, and most end otherwise
	Every  time.Duration // between rounds; zero: 1 h; at least 1 s, at most the nearest of At. Negative: only Round
	Logger *slog.Logger  // nil: silent
}

// Announcer tells of what ends soon, once for each distance: the store remembers what was told, so that restarts and other
// processes change nothing. Only a process that ends, or a store that fails, between Tell and the note of it has it told twice.
type Announcer struct {
	s    *apitoken.Service
	c    AnnouncerConfig
	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex      // guards told
	told map[string]bool // what the store is known to remember, so that it is not asked at each round
}

// maxTold bounds the memory of what was told, about 100 bytes each. Behind it the store is asked again.
const maxTold = 1 << 16

// Announce starts telling, the first round within a tenth of Every, until Close. Rounds of many processes spread by themselves. It
// fails when c is contradictory.
func Announce(s *apitoken.Service, c AnnouncerConfig) (*Announcer, error) {
	switch {
	case s == nil || c.Tell == nil:
		return nil, errors.New("report: Announce needs a service and AnnouncerConfig.Tell")
	case c.Every > 0 && c.Every < time.Second:
		return nil, fmt.Errorf("report: AnnouncerConfig.Every: %s is under a second", c.Every)
	}
	if c.Every == 0 {
		c.Every = time.Hour
	}
	if c.At == nil {
		c.At = []time.Duration{30 * 24 * time.Hour, 7 * 24 * time.Hour, 24 * time.Hour}
	}
	c.At = slices.Compact(slices.Sorted(slices.Values(c.At)))
	if len(c.At) == 0 || c.At[0] <= 0 {
		return nil, errors.New("report: AnnouncerConfig.At must hold distances over zero")
	}
	if c.Every > c.At[0] {
		return nil, fmt.Errorf("report: AnnouncerConfig.Every: what ends in %s could be gone before the next round, in %s", c.At[0], c.Every)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &Announcer{s: s, c: c, stop: stop, done: make(chan struct{}), told: map[string]bool{}}
	if c.Every < 0 {
		close(a.done)
		return a, nil
	}
	go a.run(ctx)
	return a, nil
}

// Close ends the rounds: one that is under way has its context cancelled, and is waited for. Close it before the service.
func (a *Announcer) Close() error {
	a.stop()
	<-a.done
	return nil
}

func (a *Announcer) run(ctx context.Context) {
	defer close(a.done)
	wait := time.Duration(rand.Int64N(int64(a.c.Every)/10 + 1))
	for {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if n, err := a.Round(ctx); err != nil && ctx.Err() == nil {
			a.c.Logger.Warn("report: announcements are tried again at the next round", "told", n, "error", err)
		}
		wait = a.c.Every*9/10 + time.Duration(rand.Int64N(int64(a.c.Every)/5+1))
	}
}

// Round looks through all that ends within the longest distance, tells what is due and was not told yet, and returns how
// many that were. It goes on past a Tell that fails; the error holds the first ten. Hosts with a scheduler of their own may call it.
func (a *Announcer) Round(ctx context.Context) (int, error) {
	var errs []error
	n := 0
	longest := a.c.At[len(a.c.At)-1]
	for x, err := range a.s.Expiring(ctx, a.s.Adapter().Now().Add(longest).Add(time.Second), a.c.Grants) {
		if err == nil {
			var did bool
			if did, err = a.tell(ctx, x); did {
				n++
			}
		}
		if err != nil && len(errs) < 10 {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			return n, ctx.Err()
		}
	}
	return n, errors.Join(errs...)
}

// tell announces x if it has come close enough.
func (a *Announcer) tell(ctx context.Context, x apitoken.Expiry) (bool, error) {
	now := a.s.Adapter().Now()
	at := a.crossed(x, now)
	if at == 0 {
		return false, nil
	}
	id := fmt.Sprintf("%s/%s/%d/%s", x.Kind, x.ID, x.Ends.UnixMilli(), at)
	a.mu.Lock()
	told := a.told[id]
	a.mu.Unlock()
	if told {
		return false, nil
	}
	did, err := a.s.Adapter().DoOnce(ctx, "report/expiry/"+id, x.Ends, func(ctx context.Context) error {
		return a.call(ctx, Announcement{ID: id, Expiry: x, Distance: at, Left: x.Ends.Sub(now)})
	})
	switch {
	case errors.Is(err, apitoken.ErrLimited) && !did:
		return false, nil // another process is telling it; whether it could, the next round sees
	case err != nil:
		return did, fmt.Errorf("%s %s: %w", x.Kind, x.ID, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.told) >= maxTold {
		clear(a.told)
	}
	a.told[id] = true
	return did, nil
}

// call makes an error of a panic in the host's function: it must not end the rounds, nor the process.
func (a *Announcer) call(ctx context.Context, x Announcement) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("AnnouncerConfig.Tell panicked: %v", p)
		}
	}()
	return a.c.Tell(ctx, x)
}

// crossed is the nearest distance that x has come within, zero for none.
func (a *Announcer) crossed(x apitoken.Expiry, now time.Time) time.Duration {
	left, life := x.Ends.Sub(now), x.Ends.Sub(x.Created)
	for _, at := range a.c.At {
		if left <= at {
			if life <= at || left <= 0 {
				return 0 // it was made within
			}
			return at
		}
	}
	return 0
}
