/* What of SGOOL runs in the page: the accordion (which preset is in force, what a run costs) and, below the gallery, the
view of the page's own last run. All text is set as text, never as HTML. */

(function() {
    "use strict";

    const TABS = ["txt2img", "img2img"];
    const KINDS = {before: "Before", after: "After", saliency: "Where people look", loss: "Loss curve"};
    const CLICK = 5; // A pointer that moves less, in pixels, has clicked and not dragged.

    function element(tag, className, text) {
        const node = document.createElement(tag);
        node.className = className;
        if (text !== undefined) node.textContent = text;
        return node;
    }

    function button(label, then) {
        const node = element("button", "sgool-button", label);
        node.type = "button";
        node.addEventListener("click", then);
        return node;
    }

    function press(node, down) {
        node.setAttribute("aria-pressed", String(down));
    }

    function pressed(node) {
        return node.getAttribute("aria-pressed") === "true";
    }

    const find = (selector) => gradioApp().querySelector(selector);

    /* The accordion. */

    const values = {}; // by tab, by name of the setting
    const speeds = {}; // by tab: seconds of a step, for each pixel

    /* Gradio calls it with the values of the fields that the line's data name, whenever one of them has changed. */
    window.sgoolSettings = function(tab, given) {
        const line = find(`#sgool_${tab} [data-sgool]`);
        if (!line) return [];
        const told = JSON.parse(line.dataset.sgool);
        values[tab] = Object.fromEntries(told.fields.map((name, i) => [name, given[i]]));
        describe(tab);
        return [];
    };

    function describe(tab) {
        const set = values[tab];
        const line = find(`#sgool_${tab} [data-sgool]`);
        if (!set || !line) return;
        const told = JSON.parse(line.dataset.sgool);
        for (const [name, preset] of Object.entries(told.presets)) {
            const inForce = Object.entries(preset).every(([field, value]) => set[field] === value);
            press(find(`#sgool_${tab}_preset_${name.toLowerCase()}`), inForce);
        }
        const {sampler, steps, scale} = sampling(tab);
        const passes = told.update[scale > 1 ? set.way_back : "full"];
        const follows = set.sampler === "auto" && (told.start || set.start) === "seed" &&
            told.followed.includes(sampler) && steps <= told.mostSteps;
        const improved = wholeImages(told, set, passes, steps, follows ? steps : set.steps);
        const whole = improved && improved + rendered(told, set, follows);
        const count = whole + zoomImages(told, set, passes, steps);
        const parts = [whole > 0 ? "whole" : "", set.zoom ? "zoom" : ""].filter(Boolean);
        const does = parts.length === 2 ? "both" : parts[0] ?? (set.best ? "best" : "nothing");
        const own = whole > 0 && follows ? `, sampled with your own ${sampler}` : "";
        line.querySelector(".sgool-does").textContent = told.does[does] + own;
        const words = line.querySelector(".sgool-cost");
        line.querySelector(".sgool-and").textContent = parts.length ? "; " : "";
        words.textContent = parts.length ? inWords(told, count) + inSeconds(tab, count * steps) : "";
        words.classList.toggle("sgool-slow", count >= told.slow);
    }

    /* How the WebUI samples. The sampler is a list or, by its settings, buttons. */
    function sampling(tab) {
        const chosen = find(`#${tab}_sampling input:checked`) ?? find(`#${tab}_sampling input`);
        const number = (name) => Number(find(`#${tab}_${name} input[type=number]`)?.value);
        return {sampler: chosen?.value, steps: number("steps") || 20, scale: number("cfg_scale")};
    }

    /* As sgool/cost.py counts: the image as a whole, and the places of a zoom. */
    function wholeImages(told, set, passes, imageSteps, steps) {
        const fromImage = (told.start || set.start) === "image";
        const pulled = set.method === "baseline";  // each step has a gradient
        const iterations = pulled || set.method === "none" ? 0 : set.iterations;
        if (!iterations && (fromImage || (set.candidates === 1 && !pulled))) return 0;
        const way = set.strength * told.evaluations[set.sampler];
        const begin = fromImage ? 2 * way : set.candidates * (1 - set.strength + way) * (pulled ? passes : 1);
        return (begin + iterations * passes * way) * steps / imageSteps;
    }

    /* One image more where the noise that is found is then sampled by the user's own sampler. */
    function rendered(told, set, follows) {
        const fromNoise = (told.start || set.start) === "seed" &&
            Math.floor(set.steps * set.strength + 0.5) >= set.steps;
        return set.render === "yours" && fromNoise && !follows ? 1 : 0;
    }

    function zoomImages(told, set, passes, imageSteps) {
        if (!set.zoom) return 0;
        const way = set.strength * told.evaluations[set.sampler];
        const updates = (2 + set.zoom_iterations * passes) * way * set.steps / imageSteps;
        return set.zoom_places * (set.zoom_strength + (set.zoom_iterations ? updates : 0));
    }

    function inWords(told, count) {
        const whole = Math.floor(count + 0.5);
        if (whole >= told.slow) {
            const unit = 10 ** (String(whole).length - 2);
            return `slow: about ${Math.floor(whole / unit + 0.5) * unit} times an image's time`;
        }
        return whole > 1 ? `about ${whole} times an image's time` : "about an image's time";
    }

    /* By the page's last run; "" before it. */
    function inSeconds(tab, steps) {
        const seconds = Math.round(steps * size(tab) * (speeds[tab] ?? 0));
        if (!seconds) return "";
        return seconds < 100 ? ` (about ${seconds} s)` : ` (about ${Math.round(seconds / 60)} min)`;
    }

    function size(tab) {
        const [width, height] = ["width", "height"].map((side) => find(`#${tab}_${side} input[type=number]`)?.value);
        return Number(width) * Number(height);
    }

    /* How long this run took, for what it cost. */
    function learn(tab, run, told) {
        const seconds = run?.images.find((image) => image.seconds)?.seconds;
        if (!seconds) return;
        speeds[tab] = seconds / (told.steps * told.width * told.height);
        describe(tab);
    }

    function setUpAccordion(tab) {
        // The WebUI's accordion ticks itself when it is opened, until its box has been clicked once. This event tells it
        // that the box was clicked, and is not a click: it ticks nothing.
        find(`#sgool_${tab}-visible-checkbox`).dispatchEvent(new Event("click"));
        for (const name of ["steps", "cfg_scale", "width", "height"]) {
            find(`#${tab}_${name}`)?.addEventListener("input", () => describe(tab));
        }
        // No event tells of another choice in a list of Gradio's, but the list goes.
        let before;
        onAfterUiUpdate(() => {
            const {sampler} = sampling(tab);
            if (sampler !== before) describe(tab);
            before = sampler;
        });
        // The WebUI keeps defaults and describes the API by what a choice is called, so it is called "image" there.
        const words = find(`#sgool_${tab}_start input[value=image] ~ span`);
        if (words) words.textContent = "finished image";
    }

    /* The view. */

    function View(tab) {
        this.tab = tab;
        this.id = "";
        this.run = null;
        this.index = 0;
        this.held = ""; // the phrase that stays shown
        this.box = null;
        this.scrolled = null;
    }

    View.prototype.build = function() {
        this.box = element("section", "sgool-view");
        this.box.id = `sgool_${this.tab}_view`;
        this.box.setAttribute("aria-label", "SGOOL: your image before and after");

        this.title = element("h3", "sgool-title");
        this.place = element("span", "sgool-place");
        this.pages = element("span", "sgool-pages");
        const previous = button("‹", () => this.turn(-1));
        previous.setAttribute("aria-label", "Previous image of the batch");
        const next = button("›", () => this.turn(1));
        next.setAttribute("aria-label", "Next image of the batch");
        this.pages.append(previous, this.place, next);
        const head = element("div", "sgool-row");
        this.facts = element("span", "sgool-facts");
        head.append(this.title, this.facts, this.pages);

        this.scores = element("p", "sgool-scores");
        this.message = element("p", "sgool-message");
        this.message.setAttribute("role", "status");

        this.frame = new Frame((kind) => dialog().open(this, kind), () => this.lost());
        this.looks = button(KINDS.saliency, () => {
            this.hold("");
            this.frame.cover(!pressed(this.looks));
        });
        this.frame.looks = this.looks;
        const enlarge = button("Enlarge", () => dialog().open(this, "after"));
        this.links = element("span", "sgool-links");
        this.tools = element("div", "sgool-row");
        this.tools.append(this.looks, enlarge, this.links);
        this.chips = element("div", "sgool-chips");
        this.chips.setAttribute("role", "group");
        this.chips.setAttribute("aria-label", "Phrases of the prompt, and how much of each the image shows");
        this.places = element("ol", "sgool-places");
        this.places.setAttribute("aria-label", "Places that SGOOL has zoomed into");

        this.box.append(head, this.scores, this.frame.node, this.chips, this.tools, this.places, this.message);
        find(`#image_buttons_${this.tab}`).after(this.box);
    };

    View.prototype.hide = function() {
        if (!this.box) return;
        this.box.hidden = true;
        only?.closeFor(this);
    };

    /* The generation has begun: what is shown is not of it. */
    View.prototype.begin = function() {
        this.hide();
        this.id = "";
        requestAnimationFrame(() => { this.scrolled = window.scrollY; });
    };

    /* The generation has ended. info: the WebUI's own JSON about it, empty where it failed. */
    View.prototype.end = async function(info) {
        const told = parse(info);
        const id = told?.extra_generation_params?.["SGOOL run"]?.[0];
        if (typeof id !== "string" || id === this.id) return;
        this.id = id;
        let answer, run;
        try {
            answer = await fetch(`./sgool/v1/runs/${encodeURIComponent(id)}`, {cache: "no-store"});
            run = answer.ok ? await answer.json() : null;
        } catch (error) {
            console.warn("SGOOL: the run could not be shown.", error);
        }
        if (id !== this.id || !answer) return; // another one has ended, or begun, since
        if (!this.box) this.build();
        only?.closeFor(this);
        this.run = run;
        learn(this.tab, run, told);
        this.seeds = seedsOf(told);
        this.candidates = Number(told.extra_generation_params["SGOOL Candidate seeds"] ?? 1);
        this.index = 0;
        this.held = "";
        press(this.looks, false);
        this.box.hidden = false;
        if (run?.images.length) {
            this.draw();
            this.frame.once(() => this.reveal());
        } else {
            this.lost();
        }
    };

    /* Scroll to the view, unless the user has scrolled since the generation began, or writes. */
    View.prototype.reveal = function() {
        const still = this.scrolled !== null && Math.abs(window.scrollY - this.scrolled) < 50;
        this.scrolled = null;
        if (!still || document.activeElement?.matches("textarea, input")) return;
        const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
        this.box.scrollIntoView({block: "nearest", behavior: calm ? "auto" : "smooth"});
    };

    View.prototype.turn = function(by) {
        const count = this.run.images.length;
        this.index = (this.index + by + count) % count;
        this.draw();
    };

    View.prototype.kinds = function() {
        const image = this.run.images[this.index];
        if (!wasChanged(image)) return ["after"];
        return Object.keys(KINDS).filter((kind) => kind !== "loss" || image.iterations > 0);
    };

    View.prototype.nameOf = function(kind) {
        return wasChanged(this.run.images[this.index]) ? KINDS[kind] : "Image";
    };

    View.prototype.address = function(kind) {
        return `./sgool/v1/runs/${encodeURIComponent(this.id)}/${this.index}/${kind}.png`;
    };

    View.prototype.fileName = function(kind) {
        return `sgool-${this.nameOf(kind) === "Image" ? "image" : kind}-${this.seeds[this.index] ?? this.index + 1}.png`;
    };

    View.prototype.draw = function() {
        const images = this.run.images;
        const image = images[this.index];
        const seed = this.seeds[this.index];
        const zoom = image.zoom;
        const changed = wasChanged(image);
        for (const node of [this.facts, this.frame.node, this.tools]) node.hidden = false;
        this.looks.hidden = !changed;
        this.scores.hidden = !wasImproved(image);
        this.places.hidden = !zoom;
        this.title.textContent = seed === undefined ? "SGOOL" : `SGOOL, seed ${seed}`;
        this.pages.hidden = images.length < 2;
        const all = images.length < this.run.kept ? images.length : `the first ${images.length}`;
        this.place.textContent = `${this.index + 1} of ${all}`;
        this.scores.replaceChildren(...(wasImproved(image) ? figures(image, this.candidates) : []));
        this.facts.title = image.sampled ? `Sampled with ${image.sampled}` : "";
        const critic = image.scored_by ?? zoom?.scored_by ?? image.finished?.scored_by;
        this.facts.textContent = [
            image.finished ? rankFacts(image.finished) : "",
            wasImproved(image) ? facts(image) : "",
            zoom ? zoomFacts(zoom) : "",
            critic ? `scored by ${critic}` : "",
        ]
            .filter(Boolean).join(" · ");
        this.places.replaceChildren(...(zoom?.places ?? []).map((place, i) => this.placeRow(place, i + 1)));
        this.message.textContent = [image.message, image.phrases?.note].filter(Boolean).join(" ");
        this.frame.show((kind) => this.address(kind), changed);
        this.links.replaceChildren("Save: ", ...this.kinds().map((kind) => {
            const link = element("a", "sgool-save", this.nameOf(kind).toLowerCase());
            return saves(link, this, kind);
        }));
        this.phrases = image.phrases?.found ?? [];
        this.chips.hidden = !this.phrases.length;
        this.chips.replaceChildren(...this.phrases.map((phrase, i) => this.chip(phrase, i, changed)));
        this.hold(this.phrases.some((phrase) => phrase.phrase === this.held) ? this.held : "");
    };

    /* A phrase of the prompt. Where it is in the picture is shown while a mouse is over the chip or the keyboard is on it,
    and stays shown once it is pressed. */
    View.prototype.chip = function(phrase, i, changed) {
        const node = button("", () => this.hold(this.held === phrase.phrase ? "" : phrase.phrase));
        node.classList.add("sgool-chip");
        node.classList.toggle("sgool-lacking", !isFound(phrase.after));
        node.style.setProperty("--sgool-share", percent(phrase.after).replace(" ", ""));
        const share = changed ? `${percent(phrase.before)} → ${percent(phrase.after)}` : percent(phrase.after);
        const lacking = isFound(phrase.after) ? "" : ", not found";
        node.append(element("span", "sgool-phrase", phrase.phrase), element("span", "", `${share}${lacking}`));
        node.title = phrase.maps.length ? `${phrase.phrase}. Click to keep its place shown.` : phrase.phrase;
        node.disabled = !phrase.maps.length;
        node.addEventListener("pointerenter", (event) => {
            if (event.pointerType !== "touch") this.frame.look(phrase, i + 1);
        });
        node.addEventListener("focus", () => {
            if (node.matches(":focus-visible")) this.frame.look(phrase, i + 1);
        });
        for (const leaves of ["pointerleave", "blur"]) node.addEventListener(leaves, () => this.hold(this.held));
        return node;
    };

    /* Show this phrase's place until another is chosen; "": none. */
    View.prototype.hold = function(name) {
        this.held = name;
        const chosen = this.phrases.findIndex((phrase) => phrase.phrase === name);
        [...this.chips.children].forEach((chip, i) => press(chip, i === chosen));
        this.frame.look(this.phrases[chosen], chosen + 1);
    };

    /* A place of the zoom: as it was, as it was painted, and what became of it. Its picture opens in a tab. */
    View.prototype.placeRow = function(place, number) {
        const row = element("li", "sgool-zoomed");
        row.classList.toggle("sgool-kept", place.kept);
        for (const when of place.pictures) {
            const link = element("a", "");
            link.href = this.address(`place-${number}-${when}`);
            link.target = "_blank";
            link.rel = "noopener";
            const picture = element("img", "");
            picture.src = link.href;
            const what = when === "before" ? "as it was" : "as it was painted";
            picture.alt = `${place.name}, ${what}`;
            link.title = what;
            link.append(picture);
            row.append(...(when === "after" ? [element("span", "sgool-arrow", "→"), link] : [link]));
        }
        const told = element("div", "sgool-told");
        const name = element("strong", "", `${number}. ${place.name}`);
        name.title = place.text;
        const scores = [place.before, place.after].filter((score) => score !== null);
        told.append(name, element("span", "", scores.map((score) => score.toFixed(3)).join(" → ")));
        told.append(element("span", "sgool-verdict", place.verdict));
        row.append(told);
        return row;
    };

    View.prototype.lost = function() {
        only?.closeFor(this);
        const all = [this.scores, this.facts, this.frame.node, this.chips, this.tools, this.pages, this.places];
        for (const node of all) node.hidden = true;
        this.title.textContent = "SGOOL";
        this.message.textContent = "This run is no longer kept.";
    };

    function saves(link, view, kind) {
        link.href = view.address(kind);
        link.download = view.fileName(kind);
        return link;
    }

    function parse(text) {
        try {
            return JSON.parse(text);
        } catch {
            return null;
        }
    }

    /* Of the images that the run has, which are those with a score or with a zoom. */
    function seedsOf(told) {
        const keys = ["SGOOL score after", "SGOOL zoom kept", "SGOOL score"];
        const lists = keys.map((key) => told.extra_generation_params[key] ?? []);
        const given = (value) => value !== null && value !== undefined;
        return (told.all_seeds ?? []).filter((_, i) => lists.some((list) => given(list[i])));
    }

    /* Whether SGOOL had a part in the image as a whole. */
    function wasImproved(image) {
        return image.score_before !== undefined;
    }

    /* Whether there is one before and one after; the best of a batch may only be scored. */
    function wasChanged(image) {
        return wasImproved(image) || Boolean(image.zoom);
    }

    /* More likely there than not. */
    function isFound(presence) {
        return presence >= 0.5;
    }

    function percent(share) {
        return `${Math.round(100 * share)} %`;
    }

    function rankFacts(finished) {
        return `score ${finished.score.toFixed(3)}${finished.rank ? `, rank ${finished.rank}` : ""}`;
    }

    function zoomFacts(zoom) {
        const all = zoom.places.length;
        return all ? `zoom: ${zoom.kept} of ${count(all, "place")} kept` : "zoom: no place found";
    }

    /* The images that there are, each with its score; the best one is said to be it. */
    function figures(image, candidates) {
        const yours = image.by_yours; // the best one is what the user's own sampler has made of the noise
        const best = image.best_iteration;
        const all = [["Your image", image.score_before, best === null && !yours, "The WebUI's own image"]];
        const chosenIsBest = best === -1 && near(image.score_resampled, image.score_best);
        if (image.score_resampled !== null) {
            const [name, tip] = candidates > 1 ?
                [`chosen of ${candidates} seeds`, "The starting noise that the critics chose, before any update"] :
                ["sampled again", "The same noise through SGOOL's own sampler, before any update (iteration 0)"];
            all.push([name, image.score_resampled, !yours && (best === 0 || chosenIsBest), tip]);
        } else if (best === 0) {
            all.push(["after iteration 0", image.score_best, !yours, "Carried back to noise and sampled again"]);
        }
        if (best > 0) all.push([`after iteration ${best}`, image.score_best, !yours, "The update that won"]);
        if (best === -1 && !chosenIsBest) {
            all.push(["another candidate seed", image.score_best, !yours, "Its image has the best score of all"]);
        }
        if (image.rendered !== null) {
            all.push(["by your sampler", image.rendered, yours, "The noise that was found, sampled by your own sampler"]);
        }
        return all.flatMap(([name, score, won, tip], i) => {
            const node = element(won ? "strong" : "span", "", `${name} ${score.toFixed(3)}${won ? " (best)" : ""}`);
            node.title = tip;
            return i ? [" · ", node] : [node];
        });
    }

    function near(one, other) {
        return one !== null && one.toFixed(3) === other.toFixed(3);
    }

    function facts(image) {
        const parts = [count(image.regions, "region"), count(image.iterations, "iteration")];
        if (image.sampled.startsWith("your own")) parts.push(`sampled with ${image.sampled}`);
        if (image.best_iteration === null) {
            parts.push("nothing beat your image, so it is kept");
        } else if (image.best_iteration <= 0 && image.iterations > 0) {
            parts.push("no iteration brought anything better");
        }
        return parts.join(" · ");
    }

    function count(number, what) {
        return `${number} ${what}${number === 1 ? "" : "s"}`;
    }

    /* Two pictures in one frame: before (or where people look) on the left of a divider, after on the right. The divider
    is a range input for the keyboard; a pointer drags it anywhere, and a click opens the picture under it. Over both
    lies a veil, once a phrase is looked at, and there may be a single picture without a divider. */
    function Frame(open, failed) {
        this.node = element("div", "sgool-frame");
        this.right = this.picture("sgool-after", failed);
        this.left = this.picture("sgool-before", failed);
        this.right.addEventListener("load", () => {
            this.node.style.setProperty("--sgool-aspect", this.right.naturalWidth / this.right.naturalHeight);
        });
        this.veils = ["after", "before"].map((when) => {
            const veil = this.picture(`sgool-veil sgool-${when}`, failed);
            veil.alt = "";
            veil.addEventListener("load", () => { veil.hidden = !this.phrase; });
            return veil;
        });
        this.range = element("input", "sgool-range");
        Object.assign(this.range, {type: "range", min: "0", max: "100", step: "1"});
        this.range.addEventListener("input", () => this.split(this.range.value));
        const handle = this.handle = element("span", "sgool-handle");
        handle.setAttribute("aria-hidden", "true");
        this.leftTag = element("span", "sgool-tag sgool-tag-left");
        this.rightTag = element("span", "sgool-tag sgool-tag-right", KINDS.after);
        const [over, under] = this.veils;
        this.node.append(this.right, over, this.left, under, this.range, handle, this.leftTag, this.rightTag);

        let from = null, dragging = false;
        this.node.addEventListener("pointerdown", (event) => {
            if (event.button !== 0) return;
            from = event.clientX;
            dragging = false;
            this.node.setPointerCapture(event.pointerId);
        });
        this.node.addEventListener("pointermove", (event) => {
            if (from === null) return;
            dragging ||= Math.abs(event.clientX - from) >= CLICK;
            if (dragging && !this.left.hidden) this.split(this.share(event));
        });
        this.node.addEventListener("pointerup", (event) => {
            if (from !== null && !dragging) open(this.share(event) < this.range.value ? this.kind() : "after");
            from = null;
        });
        this.node.addEventListener("pointercancel", () => { from = null; });
    }

    Frame.prototype.picture = function(className, failed) {
        const image = element("img", className);
        image.draggable = false;
        image.addEventListener("error", failed);
        return image;
    };

    Frame.prototype.share = function(event) {
        const box = this.node.getBoundingClientRect();
        return Math.min(100, Math.max(0, Math.round(100 * (event.clientX - box.left) / box.width)));
    };

    /* What is left of the divider. */
    Frame.prototype.kind = function() {
        return pressed(this.looks) ? "saliency" : "before";
    };

    Frame.prototype.split = function(percent) {
        this.range.value = percent;
        this.node.style.setProperty("--sgool-split", `${percent}%`);
        this.leftTag.hidden = percent < 15;
        this.rightTag.hidden = percent > 85;
    };

    /* changed: whether there is one before and one after. */
    Frame.prototype.show = function(address, changed) {
        this.address = address;
        this.phrase = undefined;
        for (const node of [this.left, this.range, this.handle]) node.hidden = !changed;
        this.right.src = address("after");
        this.right.alt = changed ? "The image after SGOOL" : "The image";
        if (changed) {
            this.cover(this.kind() === "saliency");
        } else {
            press(this.looks, false);
            this.split(0);
        }
    };

    /* Lay over both pictures where they show this phrase, number from 1; none: take it away. */
    Frame.prototype.look = function(phrase, number) {
        const covered = !this.left.hidden && this.kind() === "saliency";
        if (covered && Boolean(phrase) !== Boolean(this.phrase)) {
            this.left.src = this.address(phrase ? "before" : "saliency");
            this.split(phrase ? 50 : 100);
        }
        this.phrase = phrase;
        for (const [veil, when] of [[this.veils[0], "after"], [this.veils[1], "before"]]) {
            veil.hidden = true; // until it is here
            if (phrase && !(when === "before" && this.left.hidden)) veil.src = this.address(`phrase-${number}-${when}`);
        }
        this.name();
    };

    /* Cover the picture with where people look, or compare before and after. The divider may be moved in both. */
    Frame.prototype.cover = function(looks) {
        press(this.looks, looks);
        const kind = this.kind();
        this.left.src = this.address(kind);
        this.left.alt = looks ? "Where people look in the image after SGOOL" : "The image before SGOOL";
        this.range.setAttribute("aria-label", `Divider between ${KINDS[kind].toLowerCase()} (left) and after (right)`);
        this.split(looks ? 100 : 50);
        this.name();
    };

    /* Say what each picture is, or how much it shows of the phrase that is looked at. */
    Frame.prototype.name = function() {
        const said = (name, share) => `${name}: ${percent(share)}${isFound(share) ? "" : ", not found"}`;
        const phrase = this.phrase;
        this.leftTag.textContent = phrase ? said("Before", phrase.before) : KINDS[this.kind()];
        const name = this.left.hidden ? "" : KINDS.after;
        this.rightTag.textContent = phrase ? said(name || phrase.phrase, phrase.after) : name;
    };

    /* Call once the pictures have been shown. */
    Frame.prototype.once = function(then) {
        const shown = [this.left, this.right].filter((picture) => !picture.hidden);
        Promise.all(shown.map((picture) => picture.decode())).then(then, () => {});
    };

    /* The pictures of a run, one at a time and as large as the window. */
    function Dialog() {
        this.node = element("dialog", "sgool-dialog");
        this.node.setAttribute("aria-label", "SGOOL: the pictures of the run");
        this.buttons = Object.fromEntries(Object.entries(KINDS).map(([kind, name]) => [
            kind, button(name, () => this.show(kind)),
        ]));
        this.save = element("a", "sgool-button sgool-save", "Save");
        const close = button("Close", () => this.node.close());
        const head = element("div", "sgool-row");
        head.append(...Object.values(this.buttons), this.save, close);
        this.image = element("img", "");
        this.image.addEventListener("load", () => {
            this.node.style.setProperty("--sgool-aspect", this.image.naturalWidth / this.image.naturalHeight);
        });
        this.image.addEventListener("error", () => this.view?.lost());
        this.node.append(head, this.image);
        this.node.addEventListener("click", (event) => {
            if (event.target === this.node) this.node.close(); // beside the picture
        });
        this.node.addEventListener("keydown", (event) => {
            // The WebUI would interrupt the generation at Escape.
            event.stopPropagation();
            const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
            if (!by) return;
            event.preventDefault();
            const kinds = this.view.kinds();
            const kind = kinds[(kinds.indexOf(this.kind) + by + kinds.length) % kinds.length];
            this.show(kind);
            this.buttons[kind].focus();
        });
        this.node.addEventListener("close", () => {
            this.view = null;
            this.opener?.focus({preventScroll: true});
        });
        document.body.append(this.node);
    }

    Dialog.prototype.open = function(view, kind) {
        this.view = view;
        this.opener = document.activeElement === document.body ? view.frame.range : document.activeElement;
        for (const each of Object.keys(KINDS)) {
            this.buttons[each].hidden = !view.kinds().includes(each);
            this.buttons[each].textContent = view.nameOf(each);
        }
        this.show(kind);
        this.node.showModal();
        this.buttons[kind].focus();
    };

    Dialog.prototype.show = function(kind) {
        this.kind = kind;
        for (const each of Object.keys(KINDS)) press(this.buttons[each], each === kind);
        this.image.src = this.view.address(kind);
        this.image.alt = this.view.nameOf(kind);
        saves(this.save, this.view, kind);
    };

    Dialog.prototype.closeFor = function(view) {
        if (this.view === view) this.node.close();
    };

    let only = null;
    function dialog() {
        return only ||= new Dialog();
    }

    /* Call when Gradio sets the value of its hidden text field, of which nobody is told otherwise; the WebUI notices its
    settings in the same way. */
    function whenSet(field, then) {
        const before = Object.getOwnPropertyDescriptor(field, "value") ??
            Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value");
        Object.defineProperty(field, "value", {
            configurable: true,
            get: () => before.get.call(field),
            set: (value) => {
                before.set.call(field, value);
                queueMicrotask(() => then(value));
            },
        });
    }

    onUiLoaded(function() {
        for (const tab of TABS) {
            const box = find(`#sgool_${tab}-visible-checkbox`);
            const info = find(`#generation_info_${tab} textarea`);
            if (!box || !info) continue;
            setUpAccordion(tab);
            const view = new View(tab);
            find(`#${tab}_generate`).addEventListener("click", () => {
                if (box.checked) view.begin();
            });
            whenSet(info, (text) => view.end(text));
        }
    });
})();
