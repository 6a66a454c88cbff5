// Package browsertest looks at the console in a real browser: Debian's Chromium, driven by chromedp.
package browsertest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/console/browsertest/demo"
)

// The checker of accessibility comes from npm, as this very file.
const (
	axePackage = "axe-core@4.14.1"
	axeSHA256  = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
)

// need ends a test that cannot run here: where everything must be there it fails.
func need(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if os.Getenv("APITOKEN_TEST_REQUIRE") != "" {
		t.Fatalf("%s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}

// axe is the text of axe.min.js.
func axe(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	pack := exec.Command("npm", "pack", "--silent", axePackage)
	pack.Dir = dir
	_, err := pack.Output()
	need(t, "npm pack "+axePackage, err)
	packed, err := filepath.Glob(filepath.Join(dir, "axe-core-*.tgz"))
	require.NoError(t, err)
	require.Len(t, packed, 1)
	require.NoError(t, exec.Command("tar", "-xzf", packed[0], "-C", dir, "package/axe.min.js").Run())
	text, err := os.ReadFile(filepath.Join(dir, "package", "axe.min.js"))
	require.NoError(t, err)
	sum := sha256.Sum256(text)
	require.Equal(t, axeSHA256, hex.EncodeToString(sum[:]), "this is not the file that was looked at")
	return string(text)
}

// browser is one tab, with all that it complained about.
type browser struct {
	t   *testing.T
	ctx context.Context
	d   *demo.Demo

	mu   sync.Mutex // guards said
	said []string
}

func open(t *testing.T) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	need(t, "chromium", err)
	d, err := demo.Start()
	require.NoError(t, err)
	t.Cleanup(d.Close)
	alloc, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox)...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 8*time.Minute)
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx, d: d}
	chromedp.ListenTarget(ctx, func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch ev := ev.(type) {
		case *runtime.EventConsoleAPICalled:
			b.said = append(b.said, "console: "+string(ev.Type))
		case *runtime.EventExceptionThrown:
			b.said = append(b.said, "exception: "+ev.ExceptionDetails.Error())
		case *log.EventEntryAdded:
			// A page that answers 4xx on purpose is told of as a failed resource.
			if !strings.Contains(ev.Entry.Text, "Failed to load resource: the server responded with a status of 4") {
				b.said = append(b.said, "log: "+ev.Entry.Text+" "+ev.Entry.URL)
			}
		case *page.EventJavascriptDialogOpening:
			b.said = append(b.said, "dialog: "+ev.Message)
		}
	})
	// A page that is new gets the focus with the first key, so that a control could get it first and show no ring yet.
	b.run(log.Enable(), runtime.Enable(), emulation.SetFocusEmulationEnabled(true))
	return b
}

func (b *browser) run(actions ...chromedp.Action) {
	b.t.Helper()
	require.NoError(b.t, chromedp.Run(b.ctx, actions...))
}

func (b *browser) as(user string) {
	b.t.Helper()
	b.run(chromedp.Navigate(b.d.Server.URL + "/as/" + user))
}

func (b *browser) visit(path string) {
	b.t.Helper()
	b.run(chromedp.Navigate(b.d.Server.URL + "/account" + path))
}

// quiet fails if the browser complained.
func (b *browser) quiet(what string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(b.t, b.said, what)
}

// violations are what axe finds in the page that is open.
func (b *browser) violations(axe string) (found []string) {
	b.t.Helper()
	var list []struct {
		ID    string
		Help  string
		Nodes []struct{ HTML string }
	}
	var text string
	b.run(chromedp.Evaluate(axe+";0", nil), chromedp.Evaluate(`axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}).then(r => JSON.stringify(r.violations))`, &text,
		func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	require.NoError(b.t, json.Unmarshal([]byte(text), &list))
	for _, v := range list {
		for _, n := range v.Nodes {
			found = append(found, fmt.Sprintf("%s: %s: %s", v.ID, v.Help, n.HTML))
		}
	}
	return found
}

// visited is a page and who looks at it.
type visited struct{ user, path string }

// allPages are all pages of the console, each in a state that has something to show.
func allPages(d *demo.Demo) []visited {
	return []visited{
		{"mira", "/keys"}, {"bob", "/keys"}, {"mira", "/keys/new"}, {"mira", "/keys/" + d.KeyID}, {"mira", "/keys/" + d.Old}, {"mira", "/sessions"}, {"mira", "/nowhere"},
		{"mira", "/admin"}, {"olga", "/admin"}, {"olga", "/admin/subjects"}, {"olga", "/admin/subjects/mira"}, {"olga", "/admin/clients"}, {"olga", "/admin/clients/carrier-gateway"},
		{"olga", "/admin/clients/new"}, {"olga", "/admin/events"}, {"olga", "/admin/events/" + d.EventID}, {"olga", "/admin/signing-keys"}, {"olga", "/admin/hygiene"},
		{"olga", "/admin/explain"}, {"rita", "/admin/clients/hostile"},
	}
}

// look is a size of the window, in pixels, and a theme.
type look struct {
	width int64
	theme string
}

// looks are each width and each theme once, and where nothing may be left out every pair of them.
func looks() []look {
	all := []look{{1280, "light"}, {390, "dark"}, {1280, "dark"}, {390, "light"}}
	if os.Getenv("APITOKEN_TEST_REQUIRE") == "" {
		return all[:2]
	}
	return all
}

func TestEachPageInEachLook(t *testing.T) {
	text := axe(t)
	b := open(t)
	for _, l := range looks() {
		b.run(chromedp.EmulateViewport(l.width, 800), emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.theme}}))
		user := ""
		for _, p := range allPages(b.d) {
			what := fmt.Sprintf("%s as %s at %d px, %s", p.path, p.user, l.width, l.theme)
			if p.user != user {
				b.as(p.user)
				user = p.user
			}
			b.visit(p.path)
			var wide bool
			b.run(chromedp.Evaluate(`document.documentElement.scrollWidth > innerWidth`, &wide))
			require.False(t, wide, "it scrolls sideways: %s", what)
			b.quiet(what)
			require.Empty(t, b.violations(text), what)
		}
	}
}

func TestFlowsWithAndWithoutScripts(t *testing.T) {
	for _, off := range []bool{true, false} {
		t.Run(map[bool]string{true: "off", false: "on"}[off], func(t *testing.T) {
			b := open(t)
			b.run(emulation.SetScriptExecutionDisabled(off))
			b.as("mira")
			b.visit("/keys/new")
			var key, next, text string
			b.run(
				chromedp.SendKeys("#name", "from a browser"), chromedp.Click(`input[value="shipments:read"]`),
				chromedp.Click(`form button[type="submit"].go`), chromedp.Text("#sec code", &key))
			good := func(key string) error {
				_, err := b.d.Service.Validate(b.ctx, apitoken.Bearer(strings.TrimSpace(key)))
				return err
			}
			require.NoError(t, good(key))
			if !off {
				b.run(chromedp.WaitVisible(`button[data-copy="sec"]`))
			}
			b.run(chromedp.Click("footer a.btn"), chromedp.Text("main", &text))
			require.Contains(t, text, "from a browser")
			b.run(chromedp.Click(`//a[text()="from a browser"]`), chromedp.Click(`form[action$="/rotate"] button`), chromedp.Text("#sec code", &next))
			require.NoError(t, good(next))
			require.NoError(t, good(key), "the old one works for the overlap")
			require.NoError(t, b.d.Advance(25*time.Hour))
			require.ErrorIs(t, good(key), apitoken.ErrExpired)
			b.run(chromedp.Click("footer a.btn"), chromedp.Click(`//section[1]//a[text()="from a browser"]`),
				chromedp.Click("details.bad summary"), chromedp.SendKeys("#why", "the test is over"), chromedp.Click(`form[action$="/revoke"] button`), chromedp.Text(".note.ok", &text))
			require.Contains(t, text, "revoked")
			require.ErrorIs(t, good(next), apitoken.ErrRevoked)
			b.quiet("the flow")
		})
	}
}

// A page of another origin may make the browser send a form with the cookie: it changes nothing.
func TestAFormOfAnotherOrigin(t *testing.T) {
	b := open(t)
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<form method="post" action="%s/account/keys/%s/revoke"><input name="reason" value="x"><button>Win</button></form>`, b.d.Server.URL, b.d.KeyID)
	}))
	defer evil.Close()
	b.as("mira")
	var text string
	b.run(chromedp.Navigate(evil.URL), chromedp.Click("button"), chromedp.Text("main", &text))
	require.Contains(t, text, "The form came from another site")
	k, err := b.d.Service.APIKeys.Get(b.ctx, b.d.KeyID)
	require.NoError(t, err)
	require.False(t, k.Revoked)
}
