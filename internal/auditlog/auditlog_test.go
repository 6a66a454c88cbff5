package auditlog

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

func newLog(c Config) *Log[string] {
	if c.Now == nil {
		c.Now = func() time.Time { return time.Date(2026, 11, 30, 1, 2, 3, 4_567_890, time.UTC) }
	}
	return New[string](c)
}

// The stored form of an event: older and newer processes, and whoever reads a store's files, read these bytes.
func TestTheJSONOfAnEvent(t *testing.T) {
	t.Parallel()
	l := newLog(Config{Issuer: "https://own.example.com", Keep: time.Hour})
	e := Event[string]{
		Type: event.Revoked, OK: true, Reason: "left\n<the company>", Actor: "admin", ActorIssuer: "https://own.example.com", Issuer: "https://partner.example.com",
		Client: "web", TokenID: "t1", Grant: "g1", Target: rules.BySubject("al;ice"), Scopes: []string{"a", "b"}, Count: 2,
		Address: netip.MustParseAddr("fe80::1%eth0"), UserAgent: "curl\x1b", RequestID: "r1", Extra: map[string]string{"z": "1", "a": "é"},
	}
	r := l.Record(&e, nil)
	is.Equal(t, `{"id":"`+r.ID+`","time":"2026-11-30T01:02:03.004Z","type":"token.revoked","ok":true,"reason":"left\n\u003cthe company\u003e","actor":"admin",`+
		`"subject":"al;ice","issuer":"https://partner.example.com","client":"web","token_id":"t1","grant":"g1","target":"subject:al%3Bice","scopes":["a","b"],"count":2,`+
		`"address":"fe80::1","user_agent":"curl\\x1b","request_id":"r1","extra":{"a":"é","z":"1"}}`, string(r.Data))
	is.Equal(t, Name("https://partner.example.com", "al;ice"), r.Subject)
	is.Equal(t, Name("https://partner.example.com", "t1"), r.Token)
	is.Equal(t, e.Time.Add(time.Hour).UnixMilli(), r.Expires)
	is.Equal(t, store.Record{Kind: store.KindEvent, ID: e.ID, Type: "token.revoked", Subject: r.Subject, Client: "web", Grant: "g1", Token: r.Token, Expires: r.Expires, Data: r.Data}, r)

	back, err := Read[string](r)
	is.NoError(t, err)
	e.Time, e.Address = e.Time.Truncate(time.Millisecond), e.Address.WithZone("")
	is.Equal(t, e, back)

	e = Event[string]{Type: event.Alert}
	r = l.Record(&e, nil)
	is.Equal(t, `{"id":"`+r.ID+`","time":"2026-11-30T01:02:03.004Z","type":"alert","ok":false}`, string(r.Data), "what is not set is not there")
}

func TestTimesOfEvents(t *testing.T) {
	t.Parallel()
	for _, at := range []time.Time{
		time.Unix(0, 0), time.Date(2026, 2, 28, 23, 59, 59, 999_999_999, time.FixedZone("", -3600)), time.Date(9999, 12, 31, 0, 0, 0, 7_000_000, time.UTC),
		time.Date(12345, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC), {},
	} {
		e := Event[string]{Time: at}
		is.Contains(t, string(e.append(nil)), `"time":"`+at.UTC().Format("2006-01-02T15:04:05.000Z")+`"`)
	}
}

// An event that is too large is written without what may be long, and keeps what a report follows.
func TestAnEventThatIsTooLargeIsCut(t *testing.T) {
	t.Parallel()
	l := newLog(Config{})
	e := Event[string]{Type: event.Exchanged, Subject: "alice", Reason: strings.Repeat("é", 9000), Target: rules.BySubject("alice"),
		Extra: map[string]string{"chain": "t1 t2", "more": strings.Repeat("x", 9000)}}
	r := l.Record(&e, make([]byte, 0, Room))
	is.LessOrEqual(t, len(r.Data), maxBytes)
	back, err := Read[string](r)
	is.NoError(t, err)
	is.Equal(t, "alice", back.Subject)
	is.Equal(t, map[string]string{"chain": "t1 t2", "cut": "this event was too large"}, back.Extra)
	is.LessOrEqual(t, len(back.Reason), 256)
}

// An event whose JSON cannot be read is made from its record's fields. A record that holds another event is an error.
func TestADamagedEvent(t *testing.T) {
	t.Parallel()
	r := store.Record{Kind: store.KindEvent, ID: "e1", Type: "token.issued", Subject: "alice", Client: "web", Written: 1_800_000_000_000, Data: []byte(`{"id":"e1","target":"a:b:c"}`)}
	e, err := Read[string](r)
	is.NoError(t, err)
	is.Equal(t, event.Issued, e.Type)
	is.Equal(t, "alice", e.Subject)
	is.Equal(t, r.Written, e.Time.UnixMilli())
	is.NotEmpty(t, e.Extra["unreadable"])

	r.Data, err = json.Marshal(map[string]any{"id": "e2", "later": true})
	is.NoError(t, err)
	_, err = Read[string](r)
	is.ErrorIs(t, err, fault.Unavailable)
	r.ID = "e2"
	_, err = Read[string](r)
	is.NoError(t, err, "members of a newer version are passed over")
}
