"use strict";
const MOST_VISITS = 10;
const page = document.getElementById("visit").dataset;
const visit = { ...page, time: new Date().toTimeString().slice(0, 8) };

function earlierVisits() {
  try {
    const kept = JSON.parse(sessionStorage.getItem("sessile-visits"));
    return Array.isArray(kept) ? kept.filter((visit) => visit instanceof Object) : [];
  } catch {
    return [];
  }
}

function keep(visits) {
  try {
    sessionStorage.setItem("sessile-visits", JSON.stringify(visits));
  } catch {
    // A browser without storage shows this visit only.
  }
}

function row(visit) {
  const row = document.createElement("tr");
  const isResumed = String(visit.verdict).startsWith("resumed/");
  const connection = visit.request === "1" ? "new" : `same, request ${visit.request}`;
  for (const [text, style] of [
    [visit.time, "quiet"],
    [visit.server, ""],
    [visit.verdict, isResumed ? "mono good" : "mono warn"],
    [connection, "wide quiet"],
  ]) {
    const cell = document.createElement("td");
    cell.className = style;
    cell.textContent = text;
    row.append(cell);
  }
  return row;
}

const visits = [visit, ...earlierVisits()].slice(0, MOST_VISITS);
keep(visits);
document.getElementById("visits-rows").replaceChildren(...visits.map(row));
document.getElementById("visits").hidden = false;
try {
  // A reload of this address must not count as a return. A path alone could name another host, as in //host/.
  history.replaceState(null, "", location.origin + location.pathname);
} catch {
  // Browsers limit such changes. The address then keeps its query.
}
