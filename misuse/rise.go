package misuse

import (
	"strings"
	"sync/atomic"

	"github.com/apitoken-go/apitoken"
)

// A callTable counts the calls of each client, by one in eight, and once a minute compares the last five minutes with the highest five
// minutes of the client's last day and week. Counting is an addition; all else is done by the Watch's goroutine.

const (
	// callSample is how many calls one count stands for: requests of one client on many cores do not meet at one
	// counter. At the floor of a thousand calls it is exact to a tenth.
	callSample = 8
	callPlaces = 8       // of a bucket
	callKeys   = 1 << 14 // clients and API keys that are told apart; calls of more are not judged
	callBytes  = 256     // of what is learned about one, with a name of 32 bytes
	riseSpan   = 5       // minutes that are compared
	hoursKept  = 24
	daysKept   = 7
	// usualAfter is the history, in minutes, that a client must have before it is judged: a whole day, because the
	// night says nothing of the morning.
	usualAfter = 24 * 60
	idleMax    = 8 * 24 * 60 // minutes without a call, after which a client is forgotten
)

type callTable struct {
	places []calls
	usual  []*usual // of places, by index; only the Watch's goroutine touches it
	minute int64    // the last one that was looked at
	full   atomic.Uint64
	known  atomic.Int64 // of usual that are not nil
}

// calls is a place, on a cache line of its own.
type calls struct {
	key  atomic.Uint64 // hash of the client; 0: free
	n    atomic.Uint64 // since the last minute
	name atomic.Pointer[callName]
	_    [40]byte
}

// callName is who calls: a client, or an API key of no client.
type callName struct{ client, apikey, subject string }

// usual is what is known of a client's rate. All counts are of riseSpan minutes, but for recent.
type usual struct {
	recent  [riseSpan]uint32 // calls of the last minutes
	delayed [riseSpan]uint32 // sums that still overlap with the minutes that are judged
	hours   [hoursKept]uint32
	days    [daysKept]uint32
	age     int // minutes
	idle    int
}

// newCallTable makes a table, or none if the detector is off.
func newCallTable(on bool) *callTable {
	if !on {
		return &callTable{}
	}
	return &callTable{places: make([]calls, callKeys), usual: make([]*usual, callKeys)}
}

// hit counts callSample calls of the token's client.
func (t *callTable) hit(h uint64, token *apitoken.Token) {
	b := t.places[h&(callKeys-callPlaces):][:callPlaces]
	for i := range b {
		if b[i].key.Load() == h {
			b[i].n.Add(callSample)
			return
		}
	}
	for i := range b {
		if b[i].key.Load() != 0 {
			continue
		}
		if b[i].key.CompareAndSwap(0, h) {
			name := &callName{client: strings.Clone(token.Client())}
			if name.client == "" {
				name.apikey, name.subject = strings.Clone(token.ID()), strings.Clone(token.Subject())
			}
			b[i].name.Store(name)
			b[i].n.Add(callSample)
			return
		}
		if b[i].key.Load() == h { // another goroutine was first
			b[i].n.Add(callSample)
			return
		}
	}
	t.full.Add(1)
}

// bytes is the memory that the table holds now.
func (t *callTable) bytes() int64 {
	return int64(len(t.places))*(64+8) + t.known.Load()*callBytes
}

// rise is a client that calls far more often than it used to.
type rise struct {
	callName
	count, usual, limit int
}

// step looks at the minutes since the last step, if there are any. found gets what has risen.
func (t *callTable) step(minute int64, factor, floor int, found func(rise)) {
	if t.minute == 0 || minute < t.minute { // the first time, or the clock was put back
		t.minute = minute - 1
	}
	// Of a pause of the process, one day is enough.
	for i := min(minute-t.minute, hoursKept*60); i > 0; i-- {
		now := minute - i + 1
		crowded := t.full.Swap(0) > 0
		for p := range t.places {
			t.one(p, now, crowded, factor, floor, found)
		}
	}
	t.minute = minute
}

func (t *callTable) one(p int, minute int64, crowded bool, factor, floor int, found func(rise)) {
	c := &t.places[p]
	h := c.key.Load()
	name := c.name.Load()
	if h == 0 || name == nil {
		return
	}
	n := uint32(min(c.n.Swap(0), 1<<26))
	u := t.usual[p]
	if u == nil {
		u = &usual{}
		t.usual[p] = u
		t.known.Add(1)
	}
	u.age++
	u.idle++
	if n > 0 {
		u.idle = 0
	}
	if u.idle > idleMax || crowded && u.idle > 60 {
		t.usual[p] = nil
		t.known.Add(-1)
		c.name.Store(nil)
		c.key.Store(0)
		return
	}
	highest := u.highest()
	u.recent[minute%riseSpan] = n
	sum := uint32(0)
	for _, x := range u.recent {
		sum += x
	}
	limit := max(floor, factor*int(highest))
	if u.age > usualAfter && int(sum) >= limit {
		found(rise{*name, int(sum), int(highest), limit})
	}
	if minute%60 == 0 {
		u.hours[minute/60%hoursKept] = 0
		if minute/60%hoursKept == 0 {
			u.days[minute/60/hoursKept%daysKept] = 0
		}
	}
	// What is learned from a rise is its threshold: one attack must not hide the next one, and growth that lasts is
	// told of once or twice.
	learn := u.delayed[minute%riseSpan]
	u.delayed[minute%riseSpan] = uint32(min(int(sum), limit))
	hour, day := &u.hours[minute/60%hoursKept], &u.days[minute/60/hoursKept%daysKept]
	*hour, *day = max(*hour, learn), max(*day, learn)
}

// highest is the highest count of the last day or week.
func (u *usual) highest() uint32 {
	most := uint32(0)
	for _, x := range u.hours {
		most = max(most, x)
	}
	for _, x := range u.days {
		most = max(most, x)
	}
	return most
}
