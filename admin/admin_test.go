package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/export"
)

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "adm")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func session(t *testing.T, svc *apitokentest.Service, subject string) *apitoken.Issued {
	t.Helper()
	i, err := svc.Issue(context.Background(), apitoken.Request{Subject: subject, Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	require.NoError(t, err)
	return i
}

// TestOnASocket: whoever may open the socket does everything, under the name that they give, and nobody else may open it.
func TestOnASocket(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := apitokentest.New(t)
	path := filepath.Join(shortDir(t), "tokens.db"+Suffix)
	srv, err := Serve(svc.Service, path, Options{})
	require.NoError(t, err)
	if runtime.GOOS != "windows" {
		info, err := os.Lstat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "only the owner may open it")
	}
	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, left, 1, "the directory in which it was made is gone")

	c := Dial(path).As("carol\x1b[31m at the console")
	i := session(t, svc, "alice")
	p, err := c.Sessions(ctx, SessionQuery{Subject: "alice"})
	require.NoError(t, err)
	require.Len(t, p.Items, 1)
	require.Equal(t, i.Token.Grant(), p.Items[0].ID)

	require.NoError(t, c.Revoke(ctx, apitoken.ByGrant(p.Items[0].ID), "a lost laptop"))
	_, err = svc.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
	require.ErrorIs(t, err, apitoken.ErrRevoked)
	list, _, err := c.EventPage(ctx, apitoken.EventQuery{Type: event.Revoked}, "", 0)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, "carol[31m at the console", list[0].Actor, "what a terminal would obey is not in the name")
	require.Equal(t, "a lost laptop", list[0].Reason)

	_, err = Serve(svc.Service, path, Options{})
	require.ErrorContains(t, err, "another process answers")
	require.NoError(t, srv.Close())
	require.NoFileExists(t, path)
	_, err = c.Status(ctx)
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
}

// TestASocketThatACrashLeft is replaced, and what is no socket is not.
func TestASocketThatACrashLeft(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	ln, err := listen(path)
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	require.FileExists(t, path, "as after a crash")
	srv, err := Serve(svc.Service, path, Options{})
	require.NoError(t, err)
	require.NoError(t, srv.Close())

	require.NoError(t, os.WriteFile(path, []byte("a file"), 0o600))
	_, err = Serve(svc.Service, path, Options{})
	require.ErrorContains(t, err, "no socket")
	_, err = Serve(svc.Service, filepath.Join(dir, strings.Repeat("n", 120)), Options{})
	require.ErrorContains(t, err, "shorter")
}

// TestOverTLS: the scope of the caller's token decides, and its subject goes into the audit trail.
func TestOverTLS(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := apitokentest.New(t)
	h, err := Handler(svc.Service, Options{Scope: "operate"})
	require.NoError(t, err)
	server := httptest.NewTLSServer(http.StripPrefix("/admin", h))
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	with := func(scopes ...apitoken.Scope) *Client {
		_, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "olga", Scopes: scopes})
		require.NoError(t, err)
		c, err := NewClient(server.URL+"/admin/", secret, &tls.Config{RootCAs: roots})
		require.NoError(t, err)
		return c.As("somebody else")
	}

	_, err = with("orders").Status(ctx)
	require.ErrorIs(t, err, apitoken.ErrInsufficientScope)
	reader := with("operate:read")
	_, err = reader.Status(ctx)
	require.NoError(t, err)
	require.ErrorIs(t, reader.Revoke(ctx, apitoken.BySubject("alice"), "a test"), apitoken.ErrInsufficientScope)
	require.ErrorIs(t, reader.Backup(ctx, io.Discard), apitoken.ErrInsufficientScope, "a copy holds what the API does not show")
	require.NoError(t, with("operate").Revoke(ctx, apitoken.BySubject("alice"), "a test"))
	list, _, err := reader.EventPage(ctx, apitoken.EventQuery{Type: event.Revoked}, "", 0)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, "olga", list[0].Actor, "who holds the key, whatever name the caller gives")

	c, err := NewClient(server.URL+"/admin", apitoken.NewSecret("at_not_a_key"), &tls.Config{RootCAs: roots})
	require.NoError(t, err)
	_, err = c.Status(ctx)
	require.ErrorIs(t, err, apitoken.ErrInvalidToken)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "http://auth.test/v1/status", nil))
	require.Equal(t, http.StatusBadRequest, w.Code, "plain HTTP would show the key on the way")
}

// TestWhatWouldBeOpenIsRefused at the start.
func TestWhatWouldBeOpenIsRefused(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	for _, o := range []Options{{}, {Scope: "two words"}, {Scope: `quo"ted`}} {
		_, err := Handler(svc.Service, o)
		var wrong *apitoken.ConfigError
		require.ErrorAs(t, err, &wrong)
		require.Equal(t, "Scope", wrong.Field)
	}
	_, err := NewClient("http://auth.example.com", apitoken.NewSecret("k"), nil)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	_, err = NewClient("https://auth.example.com", apitoken.Secret{}, nil)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
}

// edits changes an API key in each way that there is, one at a time: what an edit doesn't name stays.
func edits(t *testing.T, c *Client, svc *apitokentest.Service, made MadeKey) Key {
	t.Helper()
	ctx := context.Background()
	name, scopes, on, off := "deploy, Berlin", apitoken.Scopes{"orders"}, true, false
	end := svc.Now().Add(120 * time.Hour).UTC()
	want := made.Key
	for _, x := range []struct {
		edit KeyEdit
		then func()
	}{
		{KeyEdit{Name: &name}, func() { want.Name = name }},
		{KeyEdit{Scopes: &scopes}, func() { want.Scopes = scopes }},
		{KeyEdit{Metadata: map[string]string{"team": "ops", "ticket": "7"}}, func() { want.Metadata = map[string]string{"team": "ops", "ticket": "7"} }},
		{KeyEdit{Metadata: map[string]string{"ticket": ""}}, func() { want.Metadata = map[string]string{"team": "ops"} }},
		{KeyEdit{Never: true}, func() { want.Expires = time.Time{} }},
		{KeyEdit{Expires: end}, func() { want.Expires = end }},
		{KeyEdit{Disabled: &on}, func() { want.Disabled, want.State = true, "disabled" }},
	} {
		x.edit.ID = made.Key.ID
		x.then()
		got, err := c.EditKey(ctx, x.edit)
		require.NoError(t, err)
		got.Uses, got.LastUsed = 0, time.Time{}
		require.Equal(t, want, got)
	}
	_, err := svc.Validate(ctx, apitoken.Bearer(made.Secret))
	require.ErrorIs(t, err, apitoken.ErrInvalidToken, "what is refused is not shown as working")
	list, _, err := c.EventPage(ctx, apitoken.EventQuery{Type: event.APIKeyChanged, TokenID: made.Key.ID}, "", 1)
	require.NoError(t, err)
	require.Equal(t, "disabled", list[0].Reason)
	require.Equal(t, "carol", list[0].Actor)
	k, err := c.EditKey(ctx, KeyEdit{ID: made.Key.ID, Disabled: &off})
	require.NoError(t, err)
	require.Equal(t, "active", k.State)
	_, err = c.EditKey(ctx, KeyEdit{ID: made.Key.ID, Never: true, Expires: end})
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	_, err = c.EditKey(ctx, KeyEdit{ID: "nothing", Name: &name})
	require.ErrorIs(t, err, apitoken.ErrNotFound)
	return k
}

// TestTheClientKnowsEveryOperation: one walk through the whole API. What it calls is counted, so that no row is without a method.
func TestTheClientKnowsEveryOperation(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	seal, err := apitoken.NewSealer([]byte("a key of thirty-two bytes: test!"))
	require.NoError(t, err)
	svc := apitokentest.New(t, func(c *apitoken.Config) { c.Seal, c.InsecureKeysInStore = seal, false })
	c := Local(svc.Service, Options{Backup: func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, "a copy")
		return err
	}}).As("carol")
	counted := &counter{next: c.http.Transport, seen: map[string]bool{}}
	c.http.Transport = counted

	s, err := c.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, apitokentest.Issuer, s.Issuer)
	require.Equal(t, svc.Now().UTC(), s.Now)
	require.True(t, s.Backup)

	made, err := c.CreateKey(ctx, NewKey{Subject: "alice", Name: "deploy", Scopes: apitoken.Scopes{"orders:read"}, Expires: svc.Now().Add(240 * time.Hour)})
	require.NoError(t, err)
	_, err = svc.Validate(ctx, apitoken.Bearer(made.Secret))
	require.NoError(t, err, "the secret is good")
	edits(t, c, svc, made)
	next, err := c.RotateKey(ctx, made.Key.ID, time.Hour)
	require.NoError(t, err)
	k, err := c.Key(ctx, made.Key.ID)
	require.NoError(t, err)
	require.Equal(t, svc.Now().Add(time.Hour).UTC(), k.Replaced)
	soon, err := c.Expiring(ctx, svc.Now().Add(480*time.Hour), 0)
	require.NoError(t, err)
	require.NotEmpty(t, soon.Items)
	require.NoError(t, c.RevokeKey(ctx, next.Key.ID, "left the team"))
	_, err = svc.Validate(ctx, apitoken.Bearer(next.Secret))
	require.ErrorIs(t, err, apitoken.ErrRevoked)
	require.ErrorIs(t, c.RevokeKey(ctx, made.Key.ID, " "), apitoken.ErrInvalidRequest, "the trail has to say why")
	keys, err := c.Keys(ctx, KeyQuery{Subject: "alice", Limit: 1})
	require.NoError(t, err)
	require.Len(t, keys.Items, 1)
	more, err := c.Keys(ctx, KeyQuery{Subject: "alice", After: keys.Next})
	require.NoError(t, err)
	require.Len(t, more.Items, 1)
	require.Empty(t, more.Next)

	_, err = c.SetRole(ctx, Role{Name: "support", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	roles, err := c.Roles(ctx)
	require.NoError(t, err)
	require.Equal(t, []Role{{"support", apitoken.Scopes{"orders:read"}}}, roles.Items)

	app, err := c.CreateClient(ctx, ClientSpec{ID: "app/one", Name: "Reports", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	require.NotEmpty(t, app.Secret)
	again, err := c.RotateClient(ctx, "app/one", time.Minute)
	require.NoError(t, err)
	require.NotEqual(t, app.Secret, again.Secret)
	info, err := c.DisableClient(ctx, "app/one", true)
	require.NoError(t, err)
	require.True(t, info.Disabled)
	info, err = c.Client(ctx, "app/one")
	require.NoError(t, err)
	require.Equal(t, "Reports", info.Name, "also an ID that a URL must escape")
	apps, err := c.Clients(ctx, PageQuery{})
	require.NoError(t, err)
	require.Len(t, apps.Items, 1)

	i := session(t, svc, "bob")
	a, err := c.Explain(ctx, Question{Token: i.Access.Reveal(), Needs: apitoken.Scopes{"orders:write"}})
	require.NoError(t, err)
	require.Equal(t, "insufficient_scope", a.Class)
	require.Equal(t, "bob", a.Token.Subject)
	n, err := c.RevokeLeaked(ctx, []byte("log: "+i.Refresh.Reveal()), "in a log")
	require.NoError(t, err)
	require.Equal(t, 1, n)
	open := session(t, svc, "carol")
	list, err := c.Sessions(ctx, SessionQuery{})
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
	require.NoError(t, c.Revoke(ctx, apitoken.BySubject("carol"), "gone"))
	_, err = svc.Validate(ctx, apitoken.Bearer(open.Access.Reveal()))
	require.ErrorIs(t, err, apitoken.ErrRevoked)

	var log bytes.Buffer
	_, err = export.Copy(ctx, c, apitoken.EventQuery{Type: event.APIKeyChanged}, export.Place{}, export.NewJSONL(&log))
	require.NoError(t, err, "package export reads through a client")
	require.Contains(t, log.String(), `"actor":"carol"`)
	events, _, err := c.EventPage(ctx, apitoken.EventQuery{Subject: "alice"}, "", 1)
	require.NoError(t, err)
	one, err := c.Event(ctx, events[0].ID)
	require.NoError(t, err)
	require.Equal(t, events[0], one)

	require.NoError(t, c.RotateSigningKeys(ctx))
	require.NoError(t, c.RotateSecrets(ctx))
	require.NoError(t, c.Rewrap(ctx))
	ring, err := c.SigningKeys(ctx)
	require.NoError(t, err)
	require.Len(t, ring.Items, 2)
	require.NoError(t, c.Compromise(ctx, ring.Items[len(ring.Items)-1].ID, "a laptop"))
	bad, err := c.Unreadable(ctx, true)
	require.NoError(t, err)
	require.Empty(t, bad.Items)
	require.ErrorIs(t, c.Remove(ctx, Unreadable{Kind: "client", ID: "app/one"}), apitoken.ErrInvalidRequest, "it can be read")
	var copied bytes.Buffer
	require.NoError(t, c.Backup(ctx, &copied))
	require.Equal(t, "a copy", copied.String())
	spec, err := c.send(ctx, "GET", "/v1/openapi.json", nil)
	require.NoError(t, err)
	body, err := io.ReadAll(spec.Body)
	require.NoError(t, err)
	require.Equal(t, Description, body)

	for _, x := range operations {
		require.Contains(t, slices.Collect(maps.Keys(counted.seen)), operationID(x), "nobody called it")
	}
	for e, err := range svc.Events(ctx, apitoken.EventQuery{}) {
		require.NoError(t, err)
		if e.Type != event.Issued && e.Type != event.Refused && e.Reason != "created" {
			require.Equal(t, "carol", e.Actor, "%s %s: each change says who made it", e.Type, e.Reason)
		}
	}
}

// counter notes which operations were called.
type counter struct {
	next http.RoundTripper
	mu   sync.Mutex
	seen map[string]bool
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	mux := http.NewServeMux()
	for _, x := range operations {
		mux.HandleFunc(x.method+" "+x.path, func(http.ResponseWriter, *http.Request) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.seen[operationID(x)] = true
		})
	}
	mux.ServeHTTP(httptest.NewRecorder(), &http.Request{Method: r.Method, URL: r.URL, Host: r.Host})
	return c.next.RoundTrip(r)
}

// TestRequestsThatCannotBeRead answer 400 and say why: a filter with a typo must not select everything.
func TestRequestsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	h := open(svc.Service, Options{})
	for _, x := range []struct{ method, path, body, says string }{
		{"GET", "/v1/sessions?subjet=alice", "", "subjet"},
		{"GET", "/v1/sessions?subject=a&subject=b", "", "twice"},
		{"GET", "/v1/sessions?limit=many", "", "limit"},
		{"GET", "/v1/events?from=yesterday", "", "from"},
		{"GET", "/v1/sessions?%zz", "", "query"},
		{"POST", "/v1/revoke", `{"target":"subject:alice","reason":"x","force":true}`, "force"},
		{"POST", "/v1/revoke", `{"target":"nobody","reason":"x"}`, "body"},
		{"POST", "/v1/revoke", `{"target":"subject:alice","reason":""}`, "reason"},
		{"POST", "/v1/revoke", `{} {}`, "more than one"},
		{"POST", "/v1/keys/x/rotate", `{"overlap_seconds":-1}`, "overlap"},
		{"POST", "/v1/explain", `{"token":"x","needs":["two words"]}`, "scope"},
		{"POST", "/v1/roles/admin", `{}`, "no such operation"},
		{"POST", "/v1/revoke", `{"reason":"` + strings.Repeat("x", maxBody) + `"}`, "too large"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(x.method, x.path, strings.NewReader(x.body)))
		require.GreaterOrEqual(t, w.Code, 400, x.path)
		require.Less(t, w.Code, 500, x.path)
		require.Contains(t, w.Body.String(), x.says, "%s %s", x.path, x.body)
	}
}

// TestABackupThatFailsOnTheWay is never taken for whole, on a socket and without one.
func TestABackupThatFailsOnTheWay(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	o := Options{Backup: func(_ context.Context, w io.Writer) error {
		_, err := w.Write(make([]byte, 1<<20))
		return errors.Join(err, errors.New("the disk is full"))
	}}
	path := filepath.Join(shortDir(t), "s")
	srv, err := Serve(svc.Service, path, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, srv.Close()) })
	for name, c := range map[string]*Client{"socket": Dial(path), "local": Local(svc.Service, o)} {
		require.ErrorIs(t, c.Backup(context.Background(), io.Discard), apitoken.ErrUnavailable, name)
	}
	err = Local(svc.Service, Options{}).Backup(context.Background(), io.Discard)
	require.ErrorIs(t, err, apitoken.ErrNotFound)
}
