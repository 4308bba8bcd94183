/* The last run under the accordion "SGOOL": before and after in one frame, where people look, and the scores.

The extension's route sgool/v1/last says in JSON what there is to show; the pictures' addresses are made here. All text is
set as text, never as HTML. The divider is a range input, so that mouse, touch and arrow keys move it. */

(function() {
    "use strict";

    const TABS = ["txt2img", "img2img"];

    function element(tag, className, text) {
        const node = document.createElement(tag);
        node.className = className;
        if (text !== undefined) node.textContent = text;
        return node;
    }

    function button(className, label) {
        const node = element("button", className, label);
        node.type = "button";
        return node;
    }

    function View(tab, root) {
        this.tab = tab;
        this.run = null;
        this.seen = 0;
        this.index = 0;

        this.box = element("section", "sgool-last");
        this.box.hidden = true;
        this.box.setAttribute("aria-label", "SGOOL: the last run, before and after");

        this.scores = element("p", "sgool-scores");
        this.message = element("p", "sgool-message");
        this.message.setAttribute("role", "status");

        this.frame = element("div", "sgool-frame");
        this.after = element("img", "sgool-after");
        this.before = element("img", "sgool-before");
        this.range = element("input", "sgool-range");
        Object.assign(this.range, {type: "range", min: "0", max: "100", step: "1", value: "50"});
        this.range.setAttribute("aria-label", "Divider between before (left) and after (right)");
        this.range.addEventListener("input", () => this.split(this.range.value));
        this.left = element("span", "sgool-tag sgool-tag-left", "Before");
        const handle = element("span", "sgool-handle");
        handle.setAttribute("aria-hidden", "true");
        this.frame.append(this.after, this.before, this.range, handle,
            this.left, element("span", "sgool-tag sgool-tag-right", "After"));

        this.looks = button("sgool-button", "Where people look");
        this.looks.setAttribute("aria-pressed", "false");
        this.looks.addEventListener("click", () => {
            this.looks.setAttribute("aria-pressed", String(this.looks.getAttribute("aria-pressed") !== "true"));
            this.draw();
        });
        this.previous = button("sgool-button", "‹");
        this.previous.setAttribute("aria-label", "Previous image of the batch");
        this.previous.addEventListener("click", () => this.turn(-1));
        this.next = button("sgool-button", "›");
        this.next.setAttribute("aria-label", "Next image of the batch");
        this.next.addEventListener("click", () => this.turn(1));
        this.place = element("span", "sgool-place");
        this.pages = element("span", "sgool-pages");
        this.pages.append(this.previous, this.place, this.next);
        const tools = element("div", "sgool-tools");
        tools.append(this.looks, this.pages);

        this.box.append(this.scores, this.frame, tools, this.message);
        root.replaceChildren(this.box);
    }

    View.prototype.split = function(percent) {
        this.frame.style.setProperty("--sgool-split", percent + "%");
    };

    View.prototype.turn = function(by) {
        const count = this.run.images.length;
        this.index = (this.index + by + count) % count;
        this.draw();
    };

    View.prototype.address = function(kind) {
        return `./sgool/v1/last/${this.tab}/${Number(this.run.id)}/${this.index}/${kind}.png`;
    };

    View.prototype.show = function(run) {
        if (run.id === this.seen) return;
        this.seen = run.id;
        this.run = run;
        this.index = 0;
        this.range.value = "50";
        this.split(50);
        this.draw();
    };

    View.prototype.draw = function() {
        const images = this.run.images;
        this.box.hidden = images.length === 0;
        if (this.box.hidden) return;
        const image = images[this.index];
        const looks = this.looks.getAttribute("aria-pressed") === "true";
        this.before.src = this.address(looks ? "saliency" : "before");
        this.before.alt = looks ? "Where people look in the image after SGOOL" : "The image before SGOOL";
        this.left.textContent = looks ? "Where people look" : "Before";
        this.after.src = this.address("after");
        this.after.alt = "The image after SGOOL";
        this.pages.hidden = images.length < 2;
        const all = images.length < this.run.kept ? images.length : `the first ${images.length}`;
        this.place.textContent = `${this.index + 1} of ${all}`;
        this.scores.textContent = summary(image);
        this.message.textContent = image.message || "";
    };

    function summary(image) {
        const parts = [];
        if (image.score_before !== null && image.score_after !== null) {
            const gain = image.score_after - image.score_before;
            const sign = gain < 0 ? "−" : "+";
            parts.push(`Score ${image.score_before.toFixed(3)} → ${image.score_after.toFixed(3)} (${sign}${Math.abs(gain).toFixed(3)})`);
        }
        parts.push(count(image.regions, "region"), count(image.iterations, "iteration"));
        return parts.join(" · ");
    }

    function count(number, what) {
        return `${number} ${what}${number === 1 ? "" : "s"}`;
    }

    async function withLastRun(view, use) {
        try {
            const answer = await fetch(`./sgool/v1/last?tab=${view.tab}`, {cache: "no-store"});
            if (answer.ok) use(await answer.json());
        } catch (error) {
            console.warn("SGOOL: the last run could not be shown.", error);
        }
    }

    onUiLoaded(function() {
        for (const tab of TABS) {
            const root = gradioApp().querySelector(`#sgool_${tab}_view`);
            const log = gradioApp().querySelector(`#html_log_${tab}`);
            if (!root || !log) continue;
            const view = new View(tab, root);
            const ticked = () => {
                const box = gradioApp().querySelector(`#sgool_${tab}-visible-checkbox`);
                return box !== null && box.checked;
            };
            // What is shown is not of the generation that begins; nor is it if that one fails.
            gradioApp().querySelector(`#${tab}_generate`).addEventListener("click", () => {
                if (ticked()) view.box.hidden = true;
            });
            // What was made before the page was opened is not this page's.
            withLastRun(view, (run) => { view.seen = run.id; });
            // Gradio keeps a hidden timer in the log while a generation runs, and takes it away once, whichever way that
            // ends. The log line itself may be the same as before.
            const ended = (record) => [...record.removedNodes].some((node) => node.classList?.contains("progress-text"));
            new MutationObserver((records) => {
                if (records.some(ended) && ticked()) withLastRun(view, (run) => view.show(run));
            }).observe(log, {childList: true, subtree: true});
        }
    });
})();
