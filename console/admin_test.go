package console_test

import (
	"context"
	"encoding/csv"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/console"
	"github.com/apitoken-go/apitoken/event"
)

// adminPages are all that operators look at.
func (x *host) adminPages(subject, client string) []string {
	pages := []string{"/admin", "/admin/subjects", "/admin/subjects/" + url.PathEscape(subject), "/admin/clients", "/admin/clients/" + client, "/admin/clients/new",
		"/admin/events", "/admin/events?ok=0", "/admin/signing-keys", "/admin/hygiene", "/admin/explain"}
	list, _, err := x.svc.EventPage(context.Background(), apitoken.EventQuery{}, "", 100)
	require.NoError(x.t, err)
	for _, e := range list {
		pages = append(pages, "/admin/events/"+e.ID)
	}
	return pages
}

func (x *host) newClient() apitoken.Client {
	x.t.Helper()
	c, _, err := x.svc.Clients.Create(context.Background(), apitoken.Client{ID: "gateway", Name: "Carrier gateway", GrantTypes: []string{"client_credentials"},
		Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(x.t, err)
	return c
}

func TestOperatorsPagesAreForOperators(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	x.newKey("mallory", "hers")
	x.newClient()
	posts := []string{"/admin/subjects/mallory/revoke", "/admin/subjects/mallory/end", "/admin/subjects/mallory/able", "/admin/clients", "/admin/clients/gateway/rotate", "/admin/clients/gateway/revoke",
		"/admin/clients/gateway/disable", "/admin/clients/gateway/enable", "/admin/clients/gateway/change", "/admin/signing-keys/rotate", "/admin/signing-keys/compromise",
		"/admin/signing-keys/root-secret", "/admin/explain/leaked"}
	for _, path := range x.adminPages("mallory", "gateway") {
		require.Equal(t, 403, x.get("mallory", path).StatusCode, path)
		a := x.get("rita/reader", path)
		if path == "/admin/clients/new" {
			require.Equal(t, 403, a.StatusCode, "a reader is shown no form")
			continue
		}
		require.Equal(t, 200, a.StatusCode, "%s\n%s", path, a.body)
		for _, form := range regexp.MustCompile(`(?s)<form[^>]*method="post"[^>]*>`).FindAllString(a.body, -1) {
			require.Regexp(t, `action="/account/admin/(subjects|explain)"`, form, "a reader's forms change nothing: %s", path)
		}
		require.Equal(t, 200, x.get("olga/operator", path).StatusCode, path)
	}
	for _, path := range posts {
		for _, user := range []string{"mallory", "rita/reader"} {
			a := x.post(user, path, url.Values{"reason": {"x"}, "confirm": {"mallory"}, "what": {"all"}})
			require.Equal(t, 403, a.StatusCode, "%s %s", user, path)
			require.Contains(t, a.body, "operator")
		}
	}
	require.NotContains(t, x.get("mallory", "/keys").body, "/admin", "nothing in the menu")

	self := newHost(t, func(o *console.Options) { o.Faces = console.Self })
	require.Equal(t, 404, self.get("olga/operator", "/admin").StatusCode, "a face that was not asked for does not exist")
	admin := newHost(t, func(o *console.Options) { o.Faces = console.Admin })
	require.Equal(t, 404, admin.get("olga/operator", "/keys").StatusCode)
	require.Equal(t, "/account/admin", admin.get("olga/operator", "/").Header.Get("Location"))
}

func TestOperatorsConfirmWhoTheyAre(t *testing.T) {
	t.Parallel()
	var confirmed time.Time
	x := newHost(t, func(o *console.Options) {
		o.Fresh, o.Reauth = 15*time.Minute, "/confirm?next="
		o.Actor = func(*http.Request) (console.Actor, error) {
			return console.Actor{Subject: "olga", Admin: console.Operator, Confirmed: confirmed}, nil
		}
	})
	a := x.post("olga", "/admin/signing-keys/rotate", nil)
	require.Equal(t, 403, a.StatusCode)
	require.Contains(t, a.body, `href="/confirm?next=%2Faccount%2Fadmin"`)
	confirmed = x.svc.Now().Add(-14 * time.Minute)
	require.Equal(t, 303, x.post("olga", "/admin/signing-keys/rotate", nil).StatusCode)
}

func TestAnOperatorEndsWhatASubjectHolds(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	key, _ := x.newKey("alice", "hers")
	other, _ := x.newKey("bob", "his")
	i, err := x.svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders"}, Refresh: true})
	require.NoError(t, err)
	a := x.get("olga/operator", "/admin/subjects/alice")
	require.Contains(t, a.body, i.Token.Grant())
	require.Contains(t, a.body, x.keyID("alice"))

	path := "/admin/subjects/alice/revoke"
	a = x.post("olga/operator", path, url.Values{"what": {"all"}, "confirm": {"bob"}})
	require.Equal(t, 422, a.StatusCode)
	require.Contains(t, a.body, `href="#why"`)
	require.Contains(t, a.body, `href="#sure"`)
	require.NoError(t, x.good(key))
	a = x.post("olga/operator", path, url.Values{"what": {"sessions"}, "confirm": {"alice"}, "reason": {"lost phone"}})
	require.Equal(t, 303, a.StatusCode)
	require.ErrorIs(t, x.good(i.Access.Reveal()), apitoken.ErrRevoked)
	require.NoError(t, x.good(key))
	require.Equal(t, 303, x.post("olga/operator", "/admin/subjects/alice/end", url.Values{"key": {x.keyID("alice")}}).StatusCode)
	require.ErrorIs(t, x.good(key), apitoken.ErrRevoked)
	require.NoError(t, x.good(other))
	for e, err := range x.svc.Events(context.Background(), apitoken.EventQuery{Type: event.Revoked}) {
		require.NoError(t, err)
		require.Equal(t, "olga", e.Actor, "who did it is in the log")
	}
	require.Contains(t, x.get("olga/operator", "/admin/subjects/alice?of="+url.QueryEscape("grant:"+i.Token.Grant())).body, i.Token.Grant())
	require.Equal(t, 200, x.get("olga/operator", "/admin/subjects/alice?of=junk").StatusCode)
}

func TestACredentialIsInNoURL(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	key, _ := x.newKey("alice", "hers")
	access := x.svc.Mint("alice", "orders:read")
	for _, token := range []string{key, access} {
		for _, a := range []answer{x.get("olga/operator", "/admin/subjects?q="+url.QueryEscape(token)), x.post("olga/operator", "/admin/subjects", url.Values{"q": {token}})} {
			require.Equal(t, 422, a.StatusCode)
			require.Empty(t, a.Header.Get("Location"))
			require.NotContains(t, a.body, token)
		}
		a := x.post("olga/operator", "/admin/explain", url.Values{"token": {token}, "needs": {"orders:write"}})
		require.Equal(t, 200, a.StatusCode)
		require.Contains(t, a.body, "403 insufficient_scope")
		require.Contains(t, a.body, "alice")
		require.NotContains(t, a.body, token, "the answer does not repeat it")
		require.NotEqual(t, 200, x.get("olga/operator", "/admin/explain/"+token).StatusCode)
	}
	x.newClient()
	for q, to := range map[string]string{"alice": "/account/admin/subjects/alice", "gateway": "/account/admin/clients/gateway", x.keyID("alice"): "/account/admin/subjects/alice",
		`../"<b>`: "/account/admin/subjects/..%2F%22%3Cb%3E"} {
		require.Equal(t, to, x.post("olga/operator", "/admin/subjects", url.Values{"q": {q}}).Header.Get("Location"))
	}

	a := x.post("olga/operator", "/admin/explain/leaked", url.Values{"text": {"export KEY=" + key + "\n"}, "reason": {"found in a repository"}})
	require.Equal(t, 200, a.StatusCode)
	require.Contains(t, a.body, "1 credential of this service was in the text")
	require.NotContains(t, a.body, key)
	require.ErrorIs(t, x.good(key), apitoken.ErrRevoked)
	require.Contains(t, x.post("olga/operator", "/admin/explain", url.Values{"token": {key}}).body, "Refused: revoked")
	require.Equal(t, 422, x.post("olga/operator", "/admin/explain", url.Values{"token": {""}, "needs": {`a"b`}}).StatusCode)
}

func TestClientsOfAnOperator(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	form := url.Values{"once": {once(t, x.get("olga/operator", "/admin/clients/new"))}, "name": {"Reports"}, "id": {"reports"}, "auth": {"secret"}, "grant": {"client_credentials"}, "scopes": {"orders:read"}}
	a := x.post("olga/operator", "/admin/clients", form)
	require.Equal(t, 200, a.StatusCode, a.body)
	first := secret(t, a)
	authenticate := func(s string) error {
		_, err := x.svc.Clients.Authenticate(context.Background(), apitoken.ClientAuth{ID: "reports", Secret: apitoken.NewSecret(s)})
		return err
	}
	require.NoError(t, authenticate(first))
	require.Equal(t, 303, x.post("olga/operator", "/admin/clients", form).StatusCode, "the same form registers no second one")
	form.Set("once", strings.Repeat("A", 26))
	a = x.post("olga/operator", "/admin/clients", form)
	require.Equal(t, 422, a.StatusCode, "the ID is taken")
	require.Contains(t, a.body, `value="Reports"`)
	require.Equal(t, 422, x.post("olga/operator", "/admin/clients", url.Values{"once": {strings.Repeat("B", 26)}, "auth": {"private_key_jwt"}, "scopes": {"unknown"}}).StatusCode)

	form = url.Values{"once": {once(t, x.get("olga/operator", "/admin/clients/reports"))}, "overlap": {"1h"}}
	a = x.post("olga/operator", "/admin/clients/reports/rotate", form)
	require.Equal(t, 200, a.StatusCode, a.body)
	require.NoError(t, authenticate(secret(t, a)))
	require.NoError(t, authenticate(first), "the older one works on for the overlap")
	require.Equal(t, 303, x.post("olga/operator", "/admin/clients/reports/rotate", form).StatusCode)
	a = x.get("rita/reader", "/admin/clients/reports")
	require.Regexp(t, `(?s)Secrets</h2>.*Made.*Ends.*in 60 min.*Made.*No expiry`, a.body, "the ages of both")

	require.Equal(t, 303, x.post("olga/operator", "/admin/clients/reports/change", url.Values{"name": {"Nightly"}, "scopes": {"orders"}}).StatusCode)
	require.Contains(t, x.get("olga/operator", "/admin/clients/reports?done=changed").body, "<h1>Nightly</h1>")
	require.Equal(t, 422, x.post("olga/operator", "/admin/clients/reports/disable", url.Values{"reason": {"x"}}).StatusCode)
	require.Equal(t, 303, x.post("olga/operator", "/admin/clients/reports/disable", url.Values{"reason": {"x"}, "confirm": {"reports"}}).StatusCode)
	require.Error(t, authenticate(first))
	require.Equal(t, 303, x.post("olga/operator", "/admin/clients/reports/enable", nil).StatusCode)
	require.NoError(t, authenticate(first))
	require.Equal(t, 303, x.post("olga/operator", "/admin/clients/reports/revoke", url.Values{"reason": {"x"}, "confirm": {"reports"}}).StatusCode)
	require.Equal(t, 404, x.get("olga/operator", "/admin/clients/nobody").StatusCode)
}

func TestEventsAreFilteredPagedAndExported(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	for range 60 {
		x.svc.Mint("alice", "orders:read")
	}
	x.svc.Mint("bob", "orders:read")
	require.NoError(t, x.svc.Alert(context.Background(), apitoken.Event{Reason: "unknown tokens", Subject: "bob"}))

	rows := regexp.MustCompile(`<td role="cell" class="name">`)
	a := x.get("rita/reader", "/admin/events?subject=alice")
	require.Len(t, rows.FindAllString(a.body, -1), 50)
	older := regexp.MustCompile(`href="/account(/admin/events\?[^"]*cursor[^"]+)"`).FindStringSubmatch(a.body)
	require.NotNil(t, older)
	a = x.get("rita/reader", strings.ReplaceAll(older[1], "&amp;", "&"))
	require.Len(t, rows.FindAllString(a.body, -1), 10)
	require.Contains(t, a.body, ">Newest<")
	a = x.get("rita/reader", "/admin/events?ok=0")
	require.Contains(t, a.body, "unknown tokens")
	require.Len(t, rows.FindAllString(a.body, -1), 1, "the outcome selects")

	a = x.get("rita/reader", "/admin/events/export?as=jsonl&subject=bob")
	require.Equal(t, 2, strings.Count(a.body, "\n"), a.body)
	require.Contains(t, a.Header.Get("Content-Disposition"), "attachment")
	a = x.get("rita/reader", "/admin/events/export?as=ocsf&subject=bob&ok=0")
	require.Equal(t, 1, strings.Count(a.body, "\n"), a.body)
	require.Contains(t, a.body, `"class_uid":2004`)
	require.Equal(t, 404, x.get("rita/reader", "/admin/events/export?as=xml").StatusCode)
	require.Equal(t, 422, x.get("rita/reader", "/admin/events?from=yesterday").StatusCode)
	require.Equal(t, 404, x.get("rita/reader", "/admin/events/06fs3fin0l4dmsglgdod4qd9kk").StatusCode)
	require.Equal(t, 404, x.post("rita/reader", "/admin/events/verify", nil).StatusCode, "there is no ledger")
}

func TestSigningKeysOfAnOperator(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	access := x.svc.Mint("alice", "orders:read")
	kid := regexp.MustCompile(`<option value="([^"]+)"`).FindStringSubmatch(x.get("olga/operator", "/admin/signing-keys").body)
	require.NotNil(t, kid)
	require.Equal(t, 303, x.post("olga/operator", "/admin/signing-keys/rotate", nil).StatusCode)
	until := regexp.MustCompile(`data-l="Until"><time datetime="([^"]+)"`).FindAllStringSubmatch(x.get("rita/reader", "/admin/signing-keys").body, -1)
	require.Len(t, until, 2, "the next key says when it signs")
	require.Equal(t, until[0][1], until[1][1], "and the active one when it stops")
	require.Equal(t, 422, x.post("olga/operator", "/admin/signing-keys/compromise", url.Values{"kid": {kid[1]}, "reason": {"x"}, "confirm": {"yes"}}).StatusCode)
	require.NoError(t, x.good(access))
	require.Equal(t, 303, x.post("olga/operator", "/admin/signing-keys/compromise", url.Values{"kid": {kid[1]}, "reason": {"x"}, "confirm": {"compromised"}}).StatusCode)
	require.Error(t, x.good(access))
	require.Equal(t, 404, x.post("olga/operator", "/admin/signing-keys/compromise", url.Values{"kid": {"nokey"}, "reason": {"x"}, "confirm": {"compromised"}}).StatusCode)
	require.Equal(t, 303, x.post("olga/operator", "/admin/signing-keys/root-secret", url.Values{"do": {"secrets"}}).StatusCode)
	require.Equal(t, 400, x.post("olga/operator", "/admin/signing-keys/root-secret", nil).StatusCode)
}

func TestHygieneAndTheOverview(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	ctx := context.Background()
	for _, subject := range []string{"alice", "bob"} {
		_, _, err := x.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: subject, Name: "for ever of " + subject, Scopes: apitoken.Scopes{"orders"}})
		require.NoError(t, err)
	}
	_, _, err := x.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "carol", Name: "=cmd|' /C calc'!A1", Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	rows, err := csv.NewReader(strings.NewReader(x.get("rita/reader", "/admin/hygiene?as=csv").body)).ReadAll()
	require.NoError(t, err)
	require.Len(t, rows, 4, "a head, and what was found")
	names := map[string]string{}
	for _, row := range rows[1:] {
		names[row[1]] = row[2]
	}
	require.Equal(t, map[string]string{"alice": "for ever of alice", "bob": "for ever of bob", "carol": "'=cmd|' /C calc'!A1"}, names, "no spreadsheet takes a name for a formula")
	_, _, err = x.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "carol", Name: "ends", Scopes: apitoken.Scopes{"orders"}, Expires: x.svc.Now().Add(48 * time.Hour)})
	require.NoError(t, err)
	require.Error(t, x.good("junk"))
	a := x.get("rita/reader", "/admin/hygiene")
	require.Contains(t, a.body, "3 findings")
	require.Contains(t, a.body, "for ever of alice")
	a = x.get("rita/reader", "/admin/hygiene?owner=bob&finding=expiry")
	require.Contains(t, a.body, "1 finding,")
	require.NotContains(t, a.body, "for ever of alice")
	require.Contains(t, x.get("rita/reader", "/admin/hygiene?finding=broad").body, "Nothing to do")
	require.Equal(t, 403, x.get("carol", "/admin/hygiene?as=csv").StatusCode)

	a = x.get("rita/reader", "/admin")
	require.Contains(t, a.body, `<a href="/account/admin/subjects/carol">ends</a>`)
	require.Regexp(t, `Refused here</dt><dd class="v">1</dd>`, a.body)
	require.Contains(t, a.body, `<rect class="f3"`, "the chart shows it")

	// Read once a minute, whoever looks.
	_, _, err = x.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "dave", Name: "another", Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	require.Contains(t, x.get("rita/reader", "/admin/hygiene").body, "3 findings")
}

func TestAnOperatorDisablesAKey(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	key, _ := x.newKey("alice", "hers")
	able := func(user, do string) int {
		return x.post(user, "/admin/subjects/alice/able", url.Values{"key": {x.keyID("alice")}, "do": {do}}).StatusCode
	}
	require.Equal(t, 403, able("rita/reader", "disable"))
	require.Equal(t, 403, able("alice", "enable"))
	require.Equal(t, 303, able("olga/operator", "disable"))
	require.Error(t, x.good(key))
	require.Contains(t, x.get("alice", "/keys").body, `<span class="badge bad">Disabled</span>`, "its owner sees why it is refused")
	require.Contains(t, x.get("olga/operator", "/admin/subjects/alice").body, `name="do" value="enable"`)
	require.Equal(t, 303, able("olga/operator", "enable"))
	require.NoError(t, x.good(key))
}

func TestHostileNamesAreTextForOperatorsToo(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	ctx := apitoken.WithOrigin(apitoken.WithActor(context.Background(), hostile), apitoken.Origin{UserAgent: hostile, RequestID: hostile})
	user := `alice<b>"'&`
	i, err := x.svc.Issue(ctx, apitoken.Request{Subject: user, Scopes: apitoken.Scopes{"orders"}, Refresh: true})
	require.NoError(t, err)
	_, _, err = x.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: user, Name: hostile, Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	require.NoError(t, x.svc.Alert(ctx, apitoken.Event{Reason: hostile, Subject: user, Client: hostile, Extra: map[string]string{hostile: hostile}}))
	require.NoError(t, x.svc.Revoke(ctx, apitoken.ByToken(i.Token.ID()), hostile))
	_, _, err = x.svc.Clients.Create(ctx, apitoken.Client{ID: "c<i>'", Name: hostile, Public: true, GrantTypes: []string{"authorization_code"},
		Scopes: apitoken.Scopes{"orders"}, RedirectURIs: []string{"https://app.test/"}})
	require.NoError(t, err)
	pages := x.adminPages(user, url.PathEscape("c<i>'"))
	pages = append(pages, "/admin/subjects/"+url.PathEscape(hostile), "/admin/subjects/"+url.PathEscape(user)+"?of="+url.QueryEscape("grant:"+i.Token.Grant()),
		"/admin/events?subject="+url.QueryEscape(hostile)+"&client="+url.QueryEscape(hostile)+"&grant="+url.QueryEscape(hostile)+"&actor="+url.QueryEscape(hostile), "/admin/hygiene?owner="+url.QueryEscape(hostile))
	for _, path := range pages {
		a := x.get("olga/operator", path)
		require.Contains(t, []int{200, 422}, a.StatusCode, path)
		plain(t, a.body)
		require.NotContains(t, a.body, "c<i>")
	}
	bad := url.Values{"once": {strings.Repeat("A", 26)}, "name": {hostile}, "id": {hostile}, "jwks": {hostile}, "tls": {hostile}, "scopes": {hostile}, "redirect": {hostile}, "auth": {hostile},
		"reason": {hostile}, "confirm": {hostile}, "what": {"all"}, "before": {hostile}, "kid": {hostile}, "token": {hostile + " "}, "needs": {hostile}, "text": {hostile}}
	for _, path := range []string{"/admin/clients", "/admin/subjects/" + url.PathEscape(user) + "/revoke", "/admin/signing-keys/compromise", "/admin/explain", "/admin/explain/leaked",
		"/admin/clients/" + url.PathEscape("c<i>'") + "/disable"} {
		a := x.post("olga/operator", path, bad)
		require.Less(t, a.StatusCode, 500, path)
		plain(t, a.body)
	}
}

func TestOperatorsOfAStoreThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st, config := slow(t)
		x := newHost(t, nil, config)
		key, _ := x.newKey("alice", "hers")
		access := x.svc.Mint("alice", "orders:read")
		x.newClient()
		require.NoError(t, x.good(key)) // known here from now on
		pages := x.adminPages("alice", "gateway")
		st.down.Store(true)
		for range 6 { // until every turn of a read is taken by one that hangs
			var all sync.WaitGroup
			for _, path := range pages[:12] {
				all.Add(1)
				go func() {
					defer all.Done()
					began := time.Now()
					a := x.get("olga/operator", path)
					assert.Less(t, time.Since(began), 2*time.Second, path)
					assert.Contains(t, []int{200, 503}, a.StatusCode, path)
				}()
			}
			all.Wait()
		}
		a := x.get("olga/operator", "/admin")
		require.Equal(t, 200, a.StatusCode)
		require.Contains(t, a.body, "Not known now")
		require.Contains(t, a.body, "not known yet")

		// Revoking stays possible: it is in force here when the page says that it may not be written yet.
		began := time.Now()
		a = x.post("olga/operator", "/admin/subjects/alice/revoke", url.Values{"what": {"all"}, "confirm": {"alice"}, "reason": {"stolen"}})
		require.Less(t, time.Since(began), 2*time.Second)
		require.Equal(t, 503, a.StatusCode)
		require.Contains(t, a.body, "refused in this process already")
		require.Contains(t, a.body, `name="confirm" value="alice"`, "the same form is offered again")
		require.Error(t, x.good(access))
		require.Error(t, x.good(key))

		a = x.post("olga/operator", "/admin/explain/leaked", url.Values{"text": {key}, "reason": {"x"}})
		require.NotContains(t, a.body, key, "what was pasted is not repeated")
		st.release()
	})
}

func TestAnOldViewIsSaidOnEveryPage(t *testing.T) {
	t.Parallel()
	st, config := slow(t)
	x := newHost(t, nil, config, func(c *apitoken.Config) { c.Validation.MaxStaleness, c.Now = 50*time.Millisecond, nil })
	st.broken.Store(true)
	require.Eventually(t, func() bool { return x.svc.Freshness().Stale }, 10*time.Second, 5*time.Millisecond)
	for _, path := range []string{"/keys/new", "/admin/explain"} {
		require.Contains(t, x.get("olga/operator", path).body, "The view of revocations is", path)
	}
}

func TestTheConsoleAtTheRoot(t *testing.T) {
	t.Parallel()
	x := newHost(t, func(o *console.Options) { o.Base = "/" })
	r := httptest.NewRequest("GET", "https://app.test/keys/new", nil)
	r.Header.Set("X-User", "alice")
	a := x.do(r)
	require.Equal(t, 200, a.StatusCode)
	require.Contains(t, a.body, `action="/keys"`)
	require.NotContains(t, a.body, `"//`)
}
