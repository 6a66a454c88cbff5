package browsertest

import (
	"fmt"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// watch marks what the keyboard must reach, and notes of each that gets the focus whether it has a visible ring. Of radio buttons
// the Tab key stops at one of a group. It answers how many there are.
const watch = `(() => {
	const groups = new Set(), want = [];
	for (const e of document.querySelectorAll('a[href],button,input:not([type=hidden]),select,textarea,summary,[tabindex="0"]')) {
		if (e.disabled || !e.checkVisibility({visibilityProperty: true}) || e.closest('[hidden]')) continue;
		if (e.type === 'radio') {
			const all = [...(e.form || document).querySelectorAll('input[type=radio][name="' + e.name + '"]')];
			if (e !== (all.find(x => x.checked) || all[0])) continue;
		}
		want.push(e);
	}
	window.seen = new Map();
	document.addEventListener('focusin', ev => {
		const ring = x => { const s = getComputedStyle(x); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1 || s.boxShadow !== 'none'; };
		const e = ev.target, beside = e.nextElementSibling;
		if (seen.has(e)) return; // behind the last control the key leaves the page, and comes back before the page has the focus again
		seen.set(e, ring(e) || e.type === 'radio' && beside !== null && ring(beside));
	});
	window.want = want;
	document.activeElement.blur();
	return want.length;
})()`

// missed are the controls that the Tab key did not come to, or that did not show it.
const missed = `(() => want.filter(e => !seen.get(e)).map(e => (seen.has(e) ? 'no ring: ' : 'not reached: ') + e.outerHTML.slice(0, 120)))()`

// TestTheKeyboardReachesEverything: by the Tab key alone, and one sees where one is.
func TestTheKeyboardReachesEverything(t *testing.T) {
	b := open(t)
	for _, width := range []int64{1280, 390} {
		b.run(chromedp.EmulateViewport(width, 800))
		user := ""
		for _, p := range allPages(b.d) {
			what := fmt.Sprintf("%s as %s at %d px", p.path, p.user, width)
			if p.user != user {
				b.as(p.user)
				user = p.user
			}
			b.visit(p.path)
			var n int
			b.run(chromedp.Evaluate(watch, &n))
			require.NotZero(t, n, what)
			for range n + 20 { // also what scrolls by itself takes the focus
				b.run(chromedp.KeyEvent(kb.Tab))
			}
			var left []string
			b.run(chromedp.Evaluate(missed, &left))
			require.Empty(t, left, what)
		}
	}
}

// TestAttacksInABrowser: what is another's does not exist, and a credential comes into no URL.
func TestAttacksInABrowser(t *testing.T) {
	b := open(t)
	b.as("bob")
	var text, at string
	for _, path := range []string{"/keys/" + b.d.KeyID, "/keys/" + b.d.Old} {
		b.visit(path)
		b.run(chromedp.Text("main", &text))
		require.Contains(t, text, "There is no such key", "mira's")
	}
	b.visit("/admin")
	b.run(chromedp.Text("main", &text))
	require.Contains(t, text, "This is for operators")

	b.as("olga")
	b.visit("/admin/subjects")
	token := b.d.Token
	b.run(chromedp.SendKeys("#q", token), chromedp.Click(`main form button[type="submit"]`), chromedp.WaitVisible(`main [role="alert"]`), chromedp.Location(&at), chromedp.Text("main", &text))
	require.NotContains(t, at, token)
	require.NotContains(t, text, token)
	require.Contains(t, text, "That is a credential")
	b.visit("/admin/explain")
	b.run(chromedp.SendKeys("#tk", token), chromedp.Click(`main form button[type="submit"]`), chromedp.WaitVisible(`ol.steps`), chromedp.Location(&at), chromedp.Text("main", &text))
	require.NotContains(t, at, token)
	require.NotContains(t, text, token)
	b.visit("/admin/clients/hostile") // a script in a name would open a dialog
	b.quiet("attacks")
}
