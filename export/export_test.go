package export_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/export"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func service(t testing.TB, st store.Store, change func(*apitoken.Config)) *apitoken.Service {
	t.Helper()
	c := apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true}
	if change != nil {
		change(&c)
	}
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	t.Cleanup(func() { _ = svc.Close() })
	return svc
}

func issue(t testing.TB, svc *apitoken.Service, subject string, n int) {
	t.Helper()
	for range n {
		_, err := svc.Issue(context.Background(), apitoken.Request{Subject: subject})
		require.NoError(t, err)
	}
}

func ids(t testing.TB, svc *apitoken.Service, q apitoken.EventQuery) (list []string) {
	t.Helper()
	q.OldestFirst = true
	for e, err := range svc.Events(context.Background(), q) {
		require.NoError(t, err)
		list = append(list, e.ID)
	}
	return list
}

func written(t testing.TB, b []byte) (list []string) {
	t.Helper()
	for _, line := range bytes.SplitAfter(b, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		require.True(t, bytes.HasSuffix(line, []byte("\n")), "lines are whole")
		var e apitoken.Event
		require.NoError(t, json.Unmarshal(line, &e))
		list = append(list, e.ID)
	}
	return list
}

// TestGoesOnFromAnyPlace: on every store, however the feed grows, each event comes once and in order.
func TestGoesOnFromAnyPlace(t *testing.T) {
	t.Parallel()
	bolt, err := boltstore.Open(filepath.Join(t.TempDir(), "tokens.db"), nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = bolt.Close() })
	for name, st := range map[string]store.Store{"memory": memstore.New(), "bolt": bolt} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			svc := service(t, st, nil)
			for i, q := range []apitoken.EventQuery{{}, {Subject: "alice"}, {Type: event.Issued}} {
				var out bytes.Buffer
				w := export.NewJSONL(&out)
				var place export.Place
				require.True(t, place.IsZero())
				steps := []int{0, 1, 1, 2, 199, 201}
				if i > 0 {
					steps = []int{1, 20, 0, 1}
				}
				for _, n := range steps {
					issue(t, svc, "alice", n)
					text, err := place.MarshalText()
					require.NoError(t, err)
					require.Less(t, len(text), 1000, "a place stays small")
					place = export.Place{}
					require.NoError(t, place.UnmarshalText(text), "a place is kept as text")
					place, err = export.Copy(ctx, svc, q, place, w)
					require.NoError(t, err)
					require.Equal(t, ids(t, svc, q), written(t, out.Bytes()))
				}
			}
		})
	}
	var p export.Place
	for _, bad := range []string{"!", "AAAA", "e30"} {
		require.Error(t, p.UnmarshalText([]byte(bad)))
	}
}

// flaky fails every other time, after a part of what it was given.
type flaky struct {
	export.Writer
	calls int
}

func (f *flaky) AuditAll(ctx context.Context, list []apitoken.Event) error {
	if f.calls++; f.calls%2 == 1 {
		return errors.Join(f.Writer.AuditAll(ctx, list[:len(list)/2]), errors.New("no space left on device"))
	}
	return f.Writer.AuditAll(ctx, list)
}

func TestFailedPagesComeAgain(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, memstore.New(), nil)
	issue(t, svc, "alice", 700)
	var out bytes.Buffer
	w := &flaky{Writer: export.NewJSONL(&out)}
	var place export.Place
	for {
		var err error
		if place, err = export.Copy(ctx, svc, apitoken.EventQuery{}, place, w); err == nil {
			break
		}
	}
	seen := map[string]int{}
	var once []string
	for _, id := range written(t, out.Bytes()) {
		if seen[id]++; seen[id] == 1 {
			once = append(once, id)
		}
	}
	require.Equal(t, ids(t, svc, apitoken.EventQuery{}), once, "nothing is lost, and what came twice is recognised by its ID")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, w.Writer.Audit(ended, apitoken.Event{}), context.Canceled)
}

// list is a feed in memory that forgets.
type list struct {
	mu     sync.Mutex // guards both, where Follow reads
	events []apitoken.Event
	gone   int
}

func (f *list) EventPage(_ context.Context, q apitoken.EventQuery, cursor string, limit int) ([]apitoken.Event, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	from := f.gone
	if !q.OldestFirst {
		return nil, "", errors.New("an export reads the oldest first")
	}
	if cursor != "" {
		if _, err := fmt.Sscan(cursor, &from); err != nil {
			return nil, "", err
		}
		if from < f.gone {
			return nil, "", &apitoken.Error{Code: apitoken.ErrInvalidRequest}
		}
	}
	page := append([]apitoken.Event(nil), f.events[from:min(from+limit, len(f.events))]...)
	if from+limit < len(f.events) {
		return page, fmt.Sprint(from + limit), nil
	}
	return page, "", nil
}

func TestTrimmedFeedIsAnError(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	f := &list{}
	for n := range 500 {
		f.events = append(f.events, apitoken.Event{ID: fmt.Sprint("e", n), Type: event.Issued})
	}
	var out bytes.Buffer
	w := export.NewJSONL(&out)
	place, err := export.Copy(ctx, f, apitoken.EventQuery{}, export.Place{}, w)
	require.NoError(t, err)
	f.gone = 499
	_, err = export.Copy(ctx, f, apitoken.EventQuery{}, place, w)
	require.NoError(t, err, "what was read may go")
	f.gone = 500
	_, err = export.Copy(ctx, f, apitoken.EventQuery{}, place, w)
	require.ErrorIs(t, err, export.ErrTrimmed)
	require.ErrorIs(t, export.Follow(ctx, f, apitoken.EventQuery{}, place, w, 0, func(export.Place) error { return nil }), export.ErrTrimmed)

	few := &list{events: f.events[:1]}
	place, err = export.Copy(ctx, few, apitoken.EventQuery{}, export.Place{}, w)
	require.NoError(t, err)
	few.events, few.gone = f.events[:9], 5
	_, err = export.Copy(ctx, few, apitoken.EventQuery{}, place, w)
	require.ErrorIs(t, err, export.ErrTrimmed, "also where the feed never gave a cursor")
}

func TestFollow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		f := &list{events: []apitoken.Event{{ID: "1"}, {ID: "2"}}}
		var out bytes.Buffer
		kept := 0
		w := &flaky{Writer: export.NewJSONL(&out)}
		done := make(chan error)
		go func() {
			done <- export.Follow(ctx, f, apitoken.EventQuery{}, export.Place{}, w, time.Second, func(export.Place) error {
				if kept++; kept == 1 {
					return errors.New("the place could not be kept")
				}
				return nil
			})
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		f.mu.Lock()
		f.events = append(f.events, apitoken.Event{ID: "3"})
		f.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		got := written(t, out.Bytes())
		require.Equal(t, "3", got[len(got)-1])
		require.Equal(t, 3, kept)
	})
	require.Error(t, export.Follow(context.Background(), &list{}, apitoken.EventQuery{}, export.Place{}, export.NewJSONL(os.Stdout), 0, nil))
}

// ocsfAttributes are those of each class in version 1.4.0, by its uid, as far as they are filled here.
var ocsfAttributes = func() map[float64][]string {
	base := []string{"activity_id", "activity_name", "category_name", "category_uid", "class_name", "class_uid", "count", "message", "metadata",
		"severity", "severity_id", "status", "status_detail", "status_id", "time", "type_name", "type_uid", "unmapped"}
	iam := append([]string{"actor", "http_request", "src_endpoint", "user"}, base...)
	return map[float64][]string{
		2004: append([]string{"evidences", "finding_info", "is_alert"}, base...),
		3001: iam,
		3002: append([]string{"auth_protocol", "auth_protocol_id", "service", "session"}, iam...),
	}
}()

func TestOCSF(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 4, 5, 6, 7, 89e6, time.UTC)
	origin := apitoken.Origin{Address: netip.MustParseAddr("203.0.113.9"), UserAgent: "curl/8", RequestID: "r1"}
	var out bytes.Buffer
	w := export.NewOCSF(&out, export.OCSFOptions{Service: "https://auth.example.com", Version: "1.2.3", Tenant: "t1"})
	ctx := context.Background()
	one := func(e apitoken.Event) map[string]any {
		out.Reset()
		if e.Time.IsZero() {
			e.ID, e.Time = "01x", at
		}
		require.NoError(t, w.Audit(ctx, e))
		var m map[string]any
		require.NoError(t, json.Unmarshal(out.Bytes(), &m))
		require.Equal(t, 1, strings.Count(out.String(), "\n"))
		// What the schema requires of every event.
		for _, name := range []string{"activity_id", "category_uid", "class_uid", "type_uid", "severity_id", "time", "metadata"} {
			require.Contains(t, m, name)
		}
		require.Equal(t, m["class_uid"].(float64)*100+m["activity_id"].(float64), m["type_uid"])
		require.Equal(t, float64(int(m["class_uid"].(float64))/1000), m["category_uid"])
		meta := m["metadata"].(map[string]any)
		require.Equal(t, "01x", meta["uid"])
		require.NotEmpty(t, meta["version"])
		require.Equal(t, "apitoken", meta["product"].(map[string]any)["name"])
		for name := range m {
			require.Contains(t, ocsfAttributes[m["class_uid"].(float64)], name, "the class has no such attribute")
		}
		if user, ok := m["user"].(map[string]any); ok {
			require.Contains(t, []any{0.0, 1.0, 99.0}, user["type_id"], "a type that 1.4 knows")
		}
		switch m["class_uid"] {
		case 3001.0, 3002.0:
			user := m["user"].(map[string]any)
			require.True(t, user["uid"] != nil || user["name"] != nil, "a user has a name or uid")
			if m["class_uid"] == 3002.0 {
				require.Contains(t, m, "service")
			}
		case 2004.0:
			finding := m["finding_info"].(map[string]any)
			require.NotEmpty(t, finding["title"])
			require.NotEmpty(t, finding["uid"])
			require.Equal(t, true, m["is_alert"])
		}
		return m
	}
	require.NotEmpty(t, one(apitoken.Event{Type: event.Issued, OK: true, Subject: "alice", Actor: "bob", Client: "web", TokenID: "t", Grant: "g", Scopes: apitoken.Scopes{"a"}, Origin: origin}))
	require.JSONEq(t, `{"activity_id":1,"activity_name":"Logon","category_uid":3,"category_name":"Identity & Access Management","class_uid":3002,"class_name":"Authentication",
		"type_uid":300201,"type_name":"Authentication: Logon","severity_id":1,"severity":"Informational","time":1772600767089,"status_id":1,"status":"Success","message":"token.issued",
		"metadata":{"version":"1.4.0","product":{"name":"apitoken","vendor_name":"apitoken-go","version":"1.2.3"},"uid":"01x","event_code":"token.issued","log_name":"audit","tenant_uid":"t1"},
		"user":{"uid":"alice","name":"alice","type_id":1,"type":"User","credential_uid":"t"},"actor":{"user":{"uid":"bob","type_id":0,"type":"Unknown"},"app_uid":"web"},
		"src_endpoint":{"ip":"203.0.113.9"},"http_request":{"user_agent":"curl/8","uid":"r1"},"session":{"uid":"g","credential_uid":"t","issuer":"https://auth.example.com"},
		"service":{"name":"https://auth.example.com"},"auth_protocol_id":6,"auth_protocol":"OAUTH 2.0","unmapped":{"scopes":["a"]}}`, out.String())

	require.NotEmpty(t, one(apitoken.Event{Type: event.Alert, Reason: "addresses", Subject: "alice", Actor: "misuse", Client: "web", Grant: "g", Count: 6, Origin: origin,
		Target: apitoken.ByGrant("g"), Extra: map[string]string{"action": "revoke grant"}}))
	require.JSONEq(t, `{"activity_id":1,"activity_name":"Create","category_uid":2,"category_name":"Findings","class_uid":2004,"class_name":"Detection Finding",
		"type_uid":200401,"type_name":"Detection Finding: Create","severity_id":4,"severity":"High","time":1772600767089,"status_id":1,"status":"New","status_detail":"addresses",
		"message":"alert: addresses","count":6,"is_alert":true,"finding_info":{"uid":"01x","title":"addresses"},
		"metadata":{"version":"1.4.0","product":{"name":"apitoken","vendor_name":"apitoken-go","version":"1.2.3"},"uid":"01x","event_code":"alert","log_name":"audit","tenant_uid":"t1"},
		"evidences":[{"user":{"uid":"alice","name":"alice","type_id":1,"type":"User"},"actor":{"user":{"uid":"misuse","type_id":0,"type":"Unknown"},"app_uid":"web"},
		"src_endpoint":{"ip":"203.0.113.9"},"http_request":{"user_agent":"curl/8","uid":"r1"}}],
		"unmapped":{"target":"grant:g","extra":{"action":"revoke grant"}}}`, out.String())
	foreign := apitoken.Event{Type: event.Refused, Subject: "bob", Issuer: "https://partner.example", TokenID: "t", Actor: "ann", ActorIssuer: "https://third.example"}
	m := one(foreign)
	require.Equal(t, "https://partner.example", m["user"].(map[string]any)["domain"], "a partner's bob is not ours")
	require.Equal(t, "https://third.example", m["actor"].(map[string]any)["user"].(map[string]any)["domain"])
	require.Equal(t, "https://partner.example", m["session"].(map[string]any)["issuer"])
	var lines bytes.Buffer
	require.NoError(t, export.NewJSONL(&lines).Audit(ctx, foreign))
	require.Contains(t, lines.String(), `"actor":"ann","actor_issuer":"https://third.example","subject":"bob","issuer":"https://partner.example"`)
	for reason, severity := range map[string]float64{"expires": 2, "unknown-tokens": 3, "canary": 4} {
		e := apitoken.Event{Type: event.Alert, Reason: reason, OK: reason == "expires", Extra: map[string]string{"authentic": fmt.Sprint(reason == "canary")}}
		require.Equal(t, severity, one(e)["severity_id"], reason)
	}

	for _, c := range []struct {
		e        apitoken.Event
		class    float64
		activity float64
		status   float64
		user     string
	}{
		{apitoken.Event{Type: event.Refused, Reason: "expired", Count: 3}, 3002, 1, 2, "unknown"},
		{apitoken.Event{Type: event.ClientRefused, Client: "web"}, 3002, 1, 2, "web"},
		{apitoken.Event{Type: event.Revoked, OK: true, Subject: "alice", Target: apitoken.BySubject("alice")}, 3002, 2, 1, "alice"},
		{apitoken.Event{Type: event.Refreshed, OK: true, Subject: "alice"}, 3002, 99, 1, "alice"},
		{apitoken.Event{Type: event.Exchanged, OK: true, Subject: "alice"}, 3002, 99, 1, "alice"},
		{apitoken.Event{Type: event.Prepared, OK: true, Subject: "alice"}, 3002, 99, 1, "alice"},
		{apitoken.Event{Type: event.Reused, Subject: "alice"}, 3002, 99, 2, "alice"},
		{apitoken.Event{Type: event.Leaked, OK: true, Subject: "alice"}, 3002, 99, 1, "alice"},
		{apitoken.Event{Type: "of the future", OK: true}, 3002, 99, 1, "unknown"},
		{apitoken.Event{Type: event.APIKeyChanged, OK: true, Subject: "alice", Reason: "created"}, 3001, 1, 1, "alice"},
		{apitoken.Event{Type: event.APIKeyChanged, OK: true, Subject: "alice", Reason: "renamed"}, 3001, 99, 1, "alice"},
		{apitoken.Event{Type: event.ClientChanged, OK: true, Client: "web", Reason: "disabled"}, 3001, 5, 1, "web"},
		{apitoken.Event{Type: event.RoleChanged, OK: true, Reason: "admin"}, 3001, 99, 1, "admin"},
		{apitoken.Event{Type: event.KeyChanged, OK: true, Reason: "created", Extra: map[string]string{"kid": "k1"}}, 3001, 99, 1, "signing key k1"},
		{apitoken.Event{Type: event.Alert, Reason: "canary"}, 2004, 1, 1, ""},
	} {
		m := one(c.e)
		require.Equal(t, []any{c.class, c.activity, c.status}, []any{m["class_uid"], m["activity_id"], m["status_id"]}, c.e.Type)
		if c.user != "" {
			require.Equal(t, c.user, m["user"].(map[string]any)["name"], c.e.Type)
		}
	}
}
