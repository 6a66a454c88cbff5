package misuse

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

// A day is a recorded day of normal traffic of a middle-sized company: the same at every run. People work from seven to
// twenty-two with a peak before noon, on browsers and phones; services call all the time, restart when they are deployed
// and retry when something fails; jobs run at night. It has the things that look like misuse and are none:
//
//   - phones change between home, mobile network and office; on a train they get a new address every few minutes
//   - IPv6 addresses change within their network every hour; an office is one IPv4 address
//   - a new release of a web browser, an app or a service: two versions side by side for half an hour
//   - a service of 40 machines with one API key, on 20 networks
//   - requests under way when somebody logs out: the revoked token comes a few times more
//   - a page with a part that its user may not see: a few 403s whenever it is opened
//   - tools with a token of the test system, or a cut one; a job whose API key was deleted, and which goes on for days
//   - a client whose secret was rotated too early; people's typos
//   - an outage of ten minutes, after which everybody retries three times
type day struct {
	w      *Watch
	rng    *rand.Rand
	now    time.Time
	calls  int
	people []*person
	jobs   []*machine
}

type person struct {
	n          int
	token      apitoken.Token
	since      time.Time
	phone      bool
	home, cell netip.Addr
	work       netip.Addr
	agent      string
	train      bool // commutes by train
}

type machine struct {
	token    apitoken.Token
	places   []netip.Addr
	agent    string
	calls    float64 // a minute at the peak
	nightly  int     // hour of its job; -1: it is a service
	ignorant bool    // its token was deleted; nobody has noticed
}

const (
	dayPeople   = 800
	daySeed     = 20260302
	dayOutage   = 15*60 + 20 // minute
	dayRelease  = 10 * 60    // of the services, taking half an hour
	dayBrowsers = 11 * 60
)

func newDay(t testing.TB, w *Watch, now *time.Time) *day {
	d := &day{w: w, rng: rand.New(rand.NewPCG(daySeed, 1)), now: *now}
	office := netip.MustParseAddr("203.0.113.5")
	for n := range dayPeople {
		p := &person{n: n, phone: n%3 == 0, train: n%30 == 0, work: office}
		p.home = netip.AddrFrom4([4]byte{100, byte(64 + n>>8), byte(n), 10})
		if n%2 == 0 {
			p.home = d.v6(uint16(n))
		}
		p.cell = netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 7})
		p.agent = fmt.Sprintf("Mozilla/5.0 (X11; Linux x86_64; rv:%d.0) Gecko/20100101 Firefox/%d.0", 130+n%3, 130+n%3)
		if p.phone {
			p.agent = fmt.Sprintf("ExampleApp/4.%d (iPhone14,2; iOS 18.%d)", 11+n%2, n%3)
		}
		d.people = append(d.people, p)
	}
	job := func(m *machine, spec apitoken.TokenSpec) {
		spec.Issuer = issuer
		var err error
		m.token, err = apitoken.NewToken(spec)
		require.NoError(t, err)
		d.jobs = append(d.jobs, m)
	}
	for s := range 25 { // services with their own client tokens, four machines each
		for i := range 4 {
			m := &machine{agent: fmt.Sprintf("svc%d/1.%d.0 go", s, 4), calls: float64(2 + s/2), nightly: -1,
				places: []netip.Addr{netip.AddrFrom4([4]byte{10, 20, byte(s), byte(i)})}}
			id := fmt.Sprintf("service-%d", s)
			job(m, apitoken.TokenSpec{ID: fmt.Sprintf("s%d-%d", s, i), Subject: id, Client: id})
		}
	}
	fleet := &machine{agent: "collector/2.0", calls: 100, nightly: -1}
	for i := range 40 {
		fleet.places = append(fleet.places, netip.AddrFrom4([4]byte{10, 30, byte(i % 20), byte(i)}))
	}
	job(fleet, apitoken.TokenSpec{APIKey: true, ID: "k-fleet", Subject: "collector"})
	for i := range 60 {
		m := &machine{agent: "curl/8.9.1", calls: 0.2, nightly: -1, places: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}, ignorant: i%30 == 7}
		if i%6 == 0 {
			m.nightly, m.calls = 1+i%5, 120
		}
		job(m, apitoken.TokenSpec{APIKey: true, ID: fmt.Sprintf("k-%d", i), Subject: fmt.Sprintf("team-%d", i)})
	}
	return d
}

// v6 is a temporary address in the home network of n.
func (d *day) v6(n uint16) netip.Addr {
	a := netip.MustParseAddr("2001:db8::").As16()
	a[4], a[5] = byte(n>>8), byte(n)
	for i := 8; i < 16; i++ {
		a[i] = byte(d.rng.IntN(256))
	}
	return netip.AddrFrom16(a)
}

// busy is how much people do at that minute of the day, from 0 to 1.
func busy(minute int) float64 {
	switch h := minute / 60; {
	case h < 7 || h >= 22:
		return 0.02
	case h < 9:
		return 0.02 + 0.98*float64(minute-7*60)/120
	case h < 12:
		return 1
	case h < 14:
		return 0.7
	case h < 18:
		return 0.9
	default:
		return 0.9 * (1 - float64(minute-18*60)/240)
	}
}

func (d *day) see(op string, token apitoken.Token, err error, at netip.Addr, agent string) {
	d.calls++
	d.w.Observe(context.Background(), apitoken.Observation{Op: op, Token: token, Err: err, Hit: true, Origin: apitoken.Origin{Address: at, UserAgent: agent}})
}

// minute plays one minute.
func (d *day) minute(t testing.TB, m int) {
	again := 1
	switch {
	case m >= dayOutage && m < dayOutage+10:
		return // nothing comes through
	case m >= dayOutage+10 && m < dayOutage+15:
		again = 3
	}
	load := busy(m)
	for _, p := range d.people {
		if d.rng.Float64() < load*0.25 {
			d.person(t, p, m, again)
		}
	}
	for i, x := range d.jobs {
		n := x.calls * (0.3 + 0.7*load)
		if x.nightly >= 0 {
			if n = 0; m/60 == x.nightly && m%60 < 20 {
				n = x.calls
			}
		}
		agent := x.agent
		if m >= dayRelease+i%30 { // a release goes out machine by machine
			agent = x.agent + "-r2"
			if m == dayRelease+i%30 {
				n *= 2 // and warms its caches
			}
		}
		for n = n * float64(again) * (0.8 + 0.4*d.rng.Float64()); n > 0 && (n >= 1 || d.rng.Float64() < n); n-- {
			at := x.places[d.rng.IntN(len(x.places))]
			if x.ignorant {
				d.see("validate", apitoken.Token{}, refusal(apitoken.ErrInvalidToken), at, agent)
				continue
			}
			d.see("validate", x.token, nil, at, agent)
		}
	}
	if m%7 == 0 { // somebody's test system, cut tokens, typos
		for range 5 {
			d.see("validate", apitoken.Token{}, refusal(apitoken.ErrInvalidToken), netip.AddrFrom4([4]byte{203, 0, 113, byte(5 + d.rng.IntN(3))}), "PostmanRuntime/7.4")
		}
	}
	if m >= 9*60 && m < 9*60+8 { // a secret that was rotated before its service was
		d.w.Observe(context.Background(), apitoken.Observation{Op: "authenticate", Client: "service-3", Err: refusal(apitoken.ErrInvalidClient)})
	}
}

func refusal(code error) error { return &apitoken.Error{Code: code} }

// person plays a minute of somebody's: a page or a screen, which is a few calls.
func (d *day) person(t testing.TB, p *person, m, again int) {
	h := m / 60
	life := 10 * time.Minute // of an access token; of some applications' an hour
	if p.n%4 == 0 {
		life = time.Hour
	}
	if p.token.IsZero() || d.now.Sub(p.since) > life {
		p.since = d.now
		var err error
		p.token, err = apitoken.NewToken(apitoken.TokenSpec{ID: fmt.Sprintf("p%d-%d", p.n, d.now.Unix()), Issuer: issuer,
			Subject: fmt.Sprintf("user-%d", p.n), Client: "web", Grant: fmt.Sprintf("g-%d-%d", p.n, d.now.Unix()/86400)})
		require.NoError(t, err)
		d.w.event(apitoken.Event{Type: event.Refreshed, OK: true, Time: d.now, Subject: p.token.Subject(), Client: "web", Grant: p.token.Grant(), TokenID: p.token.ID()})
	}
	at := p.home
	switch {
	case h >= 9 && h < 17 && p.n%2 == 1:
		at = p.work
	case p.phone && d.rng.Float64() < 0.4:
		at = p.cell
	}
	if p.phone && p.train && (h == 8 || h == 17) { // every three minutes another cell, each its own network
		at = netip.AddrFrom4([4]byte{10, 99, byte(m / 3), byte(p.n)})
	}
	if at.Is6() && m%60 == 0 {
		p.home = d.v6(uint16(p.n))
		at = p.home
	}
	agent := p.agent
	if m >= dayBrowsers+p.n%300 {
		agent += ".1" // updated in the background, one window after the other
		if m < dayBrowsers+p.n%300+5 && d.rng.IntN(2) == 0 {
			agent = p.agent
		}
	}
	for range (3 + d.rng.IntN(6)) * again {
		d.see("validate", p.token, nil, at, agent)
	}
	if p.n%5 == 0 && d.rng.IntN(3) == 0 { // the part that they may not see
		for _, scope := range []apitoken.Scope{"admin:read", "billing:read"} {
			err := &apitoken.Error{Code: apitoken.ErrInsufficientScope, Needs: apitoken.AllOf(scope)}
			d.see("authorize", p.token, err, at, agent)
		}
	}
	switch d.rng.IntN(40) {
	case 0: // logs out with requests under way
		for range 1 + d.rng.IntN(4) {
			d.see("validate", p.token, refusal(apitoken.ErrRevoked), at, agent)
		}
		p.token = apitoken.Token{}
	case 1: // comes back to a window that slept
		d.see("validate", p.token, refusal(apitoken.ErrExpired), at, agent)
	}
}

// play plays days, the clock of now along with them.
func (d *day) play(t testing.TB, now *time.Time, days int) {
	for range days {
		for m := range 24 * 60 {
			d.now = *now
			d.minute(t, m)
			*now = now.Add(time.Minute)
			d.w.drain()
			d.w.step(*now)
		}
	}
}

func TestTheDayHasWhatLooksLikeMisuse(t *testing.T) {
	t.Parallel()
	if underRace {
		t.Skip("one goroutine plays it: it is judged without the race detector")
	}
	now := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	r := &recorder{}
	c := Config{Now: func() time.Time { return now }, Addresses: 3, MachineAddresses: 10, UserAgents: -1, Forbidden: 8, ForbiddenScopes: 2, RevokedUses: 3,
		FailedClients: 4, Unknown: 5}
	require.NoError(t, c.check())
	newDay(t, newWatch(c, r), &now).play(t, &now, 1)
	seen := map[Detector]bool{}
	for _, e := range r.told {
		seen[Detector(e.Reason)] = true
	}
	for _, x := range []Detector{Addresses, ScopeProbing, AfterRevocation, ClientFailures, UnknownTokens} {
		assert.True(t, seen[x], "a day that keeps %s quiet at any threshold proves nothing", x)
	}
}

func TestADayOfNormalTrafficRaisesNoAlert(t *testing.T) {
	t.Parallel()
	if underRace {
		t.Skip("one goroutine plays it: it is judged without the race detector")
	}
	now := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	r := &recorder{}
	c := Config{Now: func() time.Time { return now }, Canaries: []string{"k-planted"}}
	require.NoError(t, c.check())
	w := newWatch(c, r)
	d := newDay(t, w, &now)
	d.play(t, &now, 2) // the first one tells the usual rates, so that the second is judged by all detectors
	require.Greater(t, d.calls, 1_000_000, "the day must have traffic")
	for _, e := range r.told {
		assert.Fail(t, "a false alarm", "%s: subject %q client %q token %q count %d %v", e.Reason, e.Subject, e.Client, e.TokenID, e.Count, e.Extra)
	}
	assert.Zero(t, w.Stats().Unlooked)
	t.Logf("%d calls, %+v", d.calls, w.Stats())

	// The same day with a thief in it: each detector still sees its attack among all that.
	thief := apitoken.Origin{Address: netip.MustParseAddr("45.66.77.88"), UserAgent: "python-requests/2.32"}
	victim, shared := d.jobs[0].token, d.people[3].token
	start := len(r.told)
	for m := range 10 {
		d.now = now
		d.minute(t, 12*60+m)
		for n := range 8 {
			o := apitoken.Observation{Op: "validate", Token: d.people[1].token, Origin: thief}
			o.Address = netip.AddrFrom4([4]byte{45, 66, byte(m*8 + n), 1})
			w.Observe(t.Context(), o)
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: shared, Origin: thief})
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: shared, Origin: apitoken.Origin{Address: d.people[3].home, UserAgent: d.people[3].agent}})
			w.Observe(t.Context(), apitoken.Observation{Op: "authorize", Token: victim, Origin: thief,
				Err: &apitoken.Error{Code: apitoken.ErrInsufficientScope, Needs: apitoken.AllOf(apitoken.Scope(fmt.Sprintf("s%d:read", m*8+n)))}})
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: d.people[2].token, Err: refusal(apitoken.ErrRevoked), Origin: thief})
			w.Observe(t.Context(), apitoken.Observation{Op: "authenticate", Client: "service-9", Err: refusal(apitoken.ErrInvalidClient), Origin: thief})
		}
		for range 60 {
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Err: refusal(apitoken.ErrInvalidToken), Origin: thief})
		}
		for range 3000 {
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: victim})
		}
		now = now.Add(time.Minute)
		w.drain()
		w.step(now)
	}
	seen := map[Detector]bool{}
	for _, e := range r.told[start:] {
		seen[Detector(e.Reason)] = true
	}
	for _, x := range []Detector{Addresses, UserAgents, ScopeProbing, AfterRevocation, ClientFailures, UnknownTokens, Rise} {
		assert.True(t, seen[x], "%s was not found among a day's traffic", x)
	}
}
